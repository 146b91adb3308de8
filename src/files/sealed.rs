//! JSON files with a checksum, for a job's own state: the last member is the SHA-256 of everything before it, so that
//! a corrupted bit is detected before it affects a result.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{digest_of_file, hexadecimal, sha256, write_atomic};
use crate::error::{Error, Result};

/// The text before and after the digest.
const BEFORE: &str = ",\n\"sha256\": \"";
const AFTER: &str = "\"\n}\n";
/// Number of hexadecimal digits of the digest.
const DIGITS: usize = 64;

/// Length and checksum of a file when it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

impl Written {
    /// Describes the contents `bytes`.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, sha256: sha256(bytes) }
    }

    /// Whether the file has the recorded length.
    pub(crate) fn has_length(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|about| about.is_file() && about.len() == self.bytes)
    }

    /// Whether the file has the recorded length and SHA-256. Reads the file.
    pub(crate) fn is_whole(&self, path: &Path) -> bool {
        self.has_length(path) && digest_of_file(path).is_ok_and(|digest| hexadecimal(&digest) == self.sha256)
    }
}

/// The result of verifying a sealed file.
pub(crate) enum Unsealed {
    /// It is intact; contains the JSON without the digest.
    Whole(Vec<u8>),
    /// The digest does not match.
    Broken,
    /// There is no digest.
    Without,
}

/// Appends the digest to a JSON object that has members.
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

/// Removes and verifies the digest.
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

/// Writes a value, which must serialize to a JSON object, with a digest, atomically.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write_sealed(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(value).map_err(|error| Error::invalid(error.to_string()))?;
    write_atomic(path, &seal(text))
}

/// Reads a file written by [`write_sealed`]; `cure` is the hint if it is damaged.
///
/// # Errors
/// If it cannot be read or has changed since it was written.
pub(crate) fn read_sealed<T: DeserializeOwned>(path: &Path, cure: &str) -> Result<T> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let damaged = |why: &str| Error::Checkpoint {
        path: path.to_path_buf(),
        message: format!("is damaged: {why}; {cure}"),
    };
    match unseal(&bytes) {
        Unsealed::Whole(text) => serde_json::from_slice(&text).map_err(|error| damaged(&error.to_string())),
        Unsealed::Broken => Err(damaged("its contents do not match its SHA-256")),
        Unsealed::Without => Err(damaged("its SHA-256 is missing")),
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
    fn every_bit_flip_in_a_sealed_file_is_detected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept.json");
        let kept = Kept { number: 0.1, text: "{\"sha256\": \"x\"}".to_owned() };
        write_sealed(&path, &kept).unwrap();
        assert_eq!(read_sealed::<Kept>(&path, "").unwrap(), kept);
        let original = fs::read(&path).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&original).unwrap();
        assert_eq!(value["text"], kept.text.as_str(), "it is plain JSON");
        for bit in 0..8 * original.len() {
            let mut bytes = original.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, bytes).unwrap();
            let refused = read_sealed::<Kept>(&path, "create it again").unwrap_err().to_string();
            assert!(
                refused.contains("kept.json: is damaged") && refused.contains("create it again"),
                "{refused}"
            );
        }
        for length in 0..original.len() {
            fs::write(&path, &original[..length]).unwrap();
            assert!(read_sealed::<Kept>(&path, "").is_err());
        }
    }
}
