//! JSON that a job writes for itself and reads back: the last member is the SHA-256 of everything before it, so that a changed
//! bit is noticed before it becomes a number in a result.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{digest_of_file, hexadecimal, sha256, write_whole};
use crate::error::{Error, Result};

/// What stands before and after the digest.
const BEFORE: &str = ",\n\"sha256\": \"";
const AFTER: &str = "\"\n}\n";
/// Hexadecimal digits of the digest.
const DIGITS: usize = 64;

/// A file as it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
}

impl Written {
    /// That of these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, sha256: sha256(bytes) }
    }

    /// Whether the file still has its length.
    pub(crate) fn has_length(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|about| about.is_file() && about.len() == self.bytes)
    }

    /// Whether the file is still the same, which takes reading it.
    pub(crate) fn is_whole(&self, path: &Path) -> bool {
        self.has_length(path) && digest_of_file(path).is_ok_and(|digest| hexadecimal(&digest) == self.sha256)
    }
}

/// What a file's seal says.
pub(crate) enum Unsealed {
    /// It is whole; this is the JSON without the seal.
    Whole(Vec<u8>),
    /// Something was changed.
    Broken,
    /// There is none.
    Without,
}

/// Adds the digest to the text of a JSON object that has members.
pub fn seal(mut text: Vec<u8>) -> Vec<u8> {
    text.truncate(text.trim_ascii_end().len());
    let end = text.pop();
    debug_assert_eq!(end, Some(b'}'), "only an object can be sealed");
    text.truncate(text.trim_ascii_end().len());
    let digest = sha256(&text);
    text.extend_from_slice(BEFORE.as_bytes());
    text.extend_from_slice(digest.as_bytes());
    text.extend_from_slice(AFTER.as_bytes());
    text
}

/// Takes the digest off again, and compares it.
pub(crate) fn unseal(bytes: &[u8]) -> Unsealed {
    let length = BEFORE.len() + DIGITS + AFTER.len();
    let Some((content, end)) = bytes.len().checked_sub(length).map(|at| bytes.split_at(at)) else {
        return Unsealed::Without;
    };
    if !end.starts_with(BEFORE.as_bytes()) || !end.ends_with(AFTER.as_bytes()) {
        return Unsealed::Without;
    }
    if end[BEFORE.len()..][..DIGITS] != *sha256(content).as_bytes() {
        return Unsealed::Broken;
    }
    Unsealed::Whole([content, b"}"].concat())
}

/// Writes a value, which must become a JSON object, whole and sealed.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write_sealed(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(value).map_err(|error| Error::invalid(error.to_string()))?;
    write_whole(path, &seal(text))
}

/// Reads what [`write_sealed`] wrote; `cure` says what to do if it is damaged.
///
/// # Errors
/// If it cannot be read, or was changed since.
pub(crate) fn read_sealed<T: DeserializeOwned>(path: &Path, cure: &str) -> Result<T> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let damaged = |why: &str| Error::Checkpoint {
        path: path.to_path_buf(),
        message: format!("is damaged: {why}; {cure}"),
    };
    match unseal(&bytes) {
        Unsealed::Whole(text) => serde_json::from_slice(&text).map_err(|error| damaged(&error.to_string())),
        Unsealed::Broken => Err(damaged("its SHA-256 is not the one at its end")),
        Unsealed::Without => Err(damaged("it does not end with its SHA-256")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Kept {
        number: f64,
        text: String,
    }

    #[test]
    fn no_bit_of_a_sealed_file_can_be_changed_unnoticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept.json");
        let kept = Kept { number: 0.1, text: "{\"sha256\": \"x\"}".to_owned() };
        write_sealed(&path, &kept).unwrap();
        assert_eq!(read_sealed::<Kept>(&path, "").unwrap(), kept);
        let whole = fs::read(&path).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&whole).unwrap();
        assert_eq!(value["text"], kept.text.as_str(), "it is plain JSON");
        for bit in 0..8 * whole.len() {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, bytes).unwrap();
            let refused = read_sealed::<Kept>(&path, "make it anew").unwrap_err().to_string();
            assert!(
                refused.contains("kept.json: is damaged") && refused.contains("make it anew"),
                "{refused}"
            );
        }
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(read_sealed::<Kept>(&path, "").is_err());
        }
    }
}
