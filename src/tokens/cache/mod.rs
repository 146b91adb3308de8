//! The token cache: codes and text states of a corpus, written by `encode`, so that no epoch and no later command
//! runs the image tokenizer or a large text encoder again.
//!
//! A cache is a folder with `cache.json`, the encoders as a run saves them, and shards. A record is looked up by the
//! path of its image relative to the cache's folder: the cache can be moved together with the images, and also serves a
//! selected subset or any other table of the same images. Images that are not in the cache, or that have changed since
//! they were encoded, are tokenized as without a cache.

mod description;
pub(crate) mod shard;
mod text;

use std::{
    collections::HashMap,
    fmt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use rayon::prelude::*;

use description::Floats;
pub use description::TextKept;
pub(crate) use description::{CACHE, Description, FORMAT, Preparation, TableDescription, TextDescription};
use shard::{Codes, Entry, Freshness, Key, Text};
pub(crate) use text::CachedText;

use crate::{
    config::Config,
    data::ImageRef,
    encode::ImageTokenizer,
    error::{Error, Result},
};

/// Location of an entry: its shard and its row in the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheSlot {
    shard: u32,
    row: u32,
}

/// Result of looking up an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cached {
    /// Its codes are in the cache.
    At(CacheSlot),
    /// Its codes are in the cache, but the file has changed since.
    Changed,
    /// The image is not in the cache.
    Absent,
}

/// A complete token cache, opened for reading.
pub struct TokenCache {
    folder: PathBuf,
    description: Description,
    codes: Vec<Codes>,
    text: Vec<Text>,
    images: HashMap<Key, CacheSlot>,
    captions: HashMap<Key, CacheSlot>,
}

impl TokenCache {
    /// Opens a cache. Files of codes are verified against their checksums. Files of text states can be much larger:
    /// their lengths are verified now, their checksums before the first caption of each is read.
    ///
    /// If there is no cache, it is incomplete, or a file is missing or damaged. `encode` can rebuild a damaged shard.
    pub fn open(folder: &Path) -> Result<Self> {
        let folder = absolute(folder)?;
        let description = Description::read(&folder)?;
        let entries = entries(&folder, &description)?;
        let tokens = description.tokens();
        let opened: Vec<(Codes, Option<Text>)> = entries
            .par_iter()
            .enumerate()
            .map(|(number, entry)| {
                let path = shard::codes_path(&folder, number);
                if !entry.codes.is_whole(&path) {
                    return Err(broken(&path));
                }
                let codes = Codes::open(&path, tokens, description.vocabulary)?;
                let text = match (&description.text, &entry.text) {
                    (Some(described), Some(written)) => {
                        let path = shard::text_path(&folder, number);
                        if !written.has_length(&path) {
                            return Err(broken(&path));
                        }
                        Some(Text::open(&path, described, written)?)
                    }
                    (None, None) => None,
                    _ => return Err(broken(&shard::entry_path(&folder, number))),
                };
                Ok((codes, text))
            })
            .collect::<Result<_>>()?;
        let (mut images, mut captions) = (HashMap::new(), HashMap::new());
        for (number, (codes, text)) in opened.iter().enumerate() {
            note(&mut images, number, codes.keys());
            note(&mut captions, number, text.iter().flat_map(Text::keys));
        }
        if description.text.is_some() && captions.is_empty() {
            return Err(damaged(&folder, "lists text states, but a shard has none; encode the corpus again"));
        }
        let (codes, text): (Vec<Codes>, Vec<Option<Text>>) = opened.into_iter().unzip();
        let text = text.into_iter().flatten().collect();
        Ok(Self { folder, description, codes, text, images, captions })
    }

    /// Opens the cache that the configuration names, if any.
    ///
    /// # Errors
    /// See [`open`](Self::open).
    pub(crate) fn configured(config: &Config) -> Result<Option<Arc<Self>>> {
        Ok(config.data.token_cache.as_deref().map(Self::open).transpose()?.map(Arc::new))
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Number of images with codes in the cache.
    pub fn images(&self) -> usize {
        self.images.len()
    }

    /// Number of captions with states in the cache.
    pub fn captions(&self) -> usize {
        self.captions.len()
    }

    /// Whether stored states are rounded. Training on them then differs from training without the cache.
    pub(crate) fn rounds_text(&self) -> bool {
        self.description.text.as_ref().is_some_and(|text| text.kept == TextKept::Bf16)
    }

    /// The folder of the image tokenizer that computed the codes.
    pub(crate) fn image_tokenizer(&self) -> PathBuf {
        image_tokenizer_folder(&self.folder)
    }

    /// The folder of the text encoder that computed the states, if there are any.
    pub(crate) fn text_encoder(&self) -> Option<PathBuf> {
        self.description.text.as_ref().map(|_| text_encoder_folder(&self.folder))
    }

    /// The fingerprint of the text encoder that computed the states, if there are any.
    pub(crate) fn text_fingerprint(&self) -> Option<&str> {
        self.description.text.as_ref().map(|text| text.encoder.as_str())
    }

    /// Checks that `tokenizer` would compute the same codes under this configuration.
    ///
    /// # Errors
    /// If another tokenizer computed them, or the images were preprocessed differently.
    pub(crate) fn expect(&self, config: &Config, tokenizer: &dyn ImageTokenizer) -> Result<()> {
        let Description { side, patch_nums, image_tokenizer, preparation, .. } = &self.description;
        let quantizer = tokenizer.quantizer();
        if *side != tokenizer.image_side() || patch_nums != quantizer.patch_nums() {
            return Err(self.refuse(format!(
                "contains token maps with sides {patch_nums:?} for images of {side} pixels; the configuration needs \
                 {:?} and {} pixels",
                quantizer.patch_nums(),
                tokenizer.image_side()
            )));
        }
        let found = tokenizer.fingerprint();
        if *image_tokenizer != found {
            return Err(self.refuse(format!(
                "was built with another image tokenizer (fingerprint {}, expected {})",
                short(image_tokenizer),
                short(&found)
            )));
        }
        let expected = Preparation::of(&config.preprocess(*side));
        if *preparation != expected {
            return Err(self.refuse(format!(
                "was built with other image preprocessing ({preparation:?}, expected {expected:?}; see `compat`)"
            )));
        }
        Ok(())
    }

    /// Checks that the text encoder with this fingerprint computed the states.
    ///
    /// # Errors
    /// If another encoder did.
    pub(crate) fn expect_text(&self, found: &str) -> Result<()> {
        match self.text_fingerprint() {
            Some(kept) if kept != found => Err(self.refuse(format!(
                "contains the states of another text encoder (fingerprint {}, expected {})",
                short(kept),
                short(found)
            ))),
            _ => Ok(()),
        }
    }

    fn refuse(&self, message: String) -> Error {
        damaged(
            &self.folder,
            format!(
                "the token cache {message}; encode the corpus again, or remove token_cache from the configuration"
            ),
        )
    }

    /// Whether the cache has codes for the image and the image has not changed since.
    pub fn contains(&self, image: &ImageRef) -> bool {
        matches!(self.find(image), Cached::At(_))
    }

    /// Looks up an image.
    pub(crate) fn find(&self, image: &ImageRef) -> Cached {
        match self.images.get(&image_key(&self.folder, image)) {
            None => Cached::Absent,
            Some(&slot) => match self.codes[slot.shard as usize].freshness(slot.row as usize, image) {
                Freshness::Same => Cached::At(slot),
                Freshness::Changed => Cached::Changed,
            },
        }
    }

    /// The codes `[L]` of an entry.
    ///
    /// # Errors
    /// If a code is outside the vocabulary.
    pub(crate) fn codes(&self, slot: CacheSlot) -> Result<Vec<u16>> {
        self.codes[slot.shard as usize].codes(slot.row as usize)
    }

    /// SHA-256 of the image file that an entry's codes were computed from.
    pub(crate) fn digest(&self, slot: CacheSlot) -> [u8; 32] {
        self.codes[slot.shard as usize].digest(slot.row as usize)
    }

    /// Reads every entry. Returns the number of codes and the number of finite values among the text states.
    ///
    /// # Errors
    /// If a code is outside the vocabulary.
    pub fn read_all(&self) -> Result<(usize, usize)> {
        let mut codes = 0;
        for (shard, table) in self.codes.iter().enumerate() {
            for row in 0..table.keys().count() {
                let slot = CacheSlot { shard: shard as u32, row: row as u32 };
                codes += self.codes(slot)?.len();
            }
        }
        let states = self.text.iter().map(Text::count_finite).sum();
        Ok((codes, states))
    }
}

impl fmt::Debug for TokenCache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut structure = formatter.debug_struct("TokenCache");
        structure.field("folder", &self.folder).field("images", &self.images()).finish_non_exhaustive()
    }
}

/// The index entries of all shards, which must cover all tables without a gap.
fn entries(folder: &Path, description: &Description) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    for table in 0..description.tables.len() {
        let mut from = None;
        loop {
            let number = entries.len();
            let path = shard::entry_path(folder, number);
            if !path.exists() {
                return Err(Error::invalid(format!(
                    "the token cache {} is incomplete; run the same `encode` command again to finish it",
                    folder.display()
                )));
            }
            let entry = Entry::read(folder, number, description.format).ok_or_else(|| broken(&path))?;
            if entry.table != table
                || entry.from != from
                || entry.next.is_some_and(|next| !next.is_after(from))
            {
                return Err(broken(&path));
            }
            from = entry.next;
            entries.push(entry);
            if from.is_none() {
                break;
            }
        }
    }
    Ok(entries)
}

fn note(slots: &mut HashMap<Key, CacheSlot>, shard: usize, keys: impl Iterator<Item = Key>) {
    for (row, key) in keys.enumerate() {
        if let (Ok(shard), Ok(row)) = (u32::try_from(shard), u32::try_from(row)) {
            // If two tables have the same image, the first entry is used.
            slots.entry(key).or_insert(CacheSlot { shard, row });
        }
    }
}

pub(crate) fn image_tokenizer_folder(folder: &Path) -> PathBuf {
    folder.join(super::IMAGE_TOKENIZER_FOLDER)
}

pub(crate) fn text_encoder_folder(folder: &Path) -> PathBuf {
    folder.join(super::TEXT_ENCODER_FOLDER)
}

fn short(fingerprint: &str) -> String {
    fingerprint.chars().take(12).collect()
}

fn damaged(path: &Path, message: impl Into<String>) -> Error {
    Error::Checkpoint { path: path.to_path_buf(), message: message.into() }
}

fn broken(path: &Path) -> Error {
    damaged(
        path,
        "is missing, truncated or damaged; run the same `encode` command again to rebuild this shard",
    )
}

/// Makes a path absolute and removes `.` and `..`, so that each file has one spelling.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).map_err(Error::io("resolve", path))?;
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    Ok(plain)
}

/// The lookup key of an image: a digest of its path relative to `folder`, the cache's absolute path.
pub(crate) fn image_key(folder: &Path, image: &ImageRef) -> Key {
    let Some(image) = image.local() else {
        return shard::key(image.as_path().as_os_str().as_encoded_bytes());
    };
    // A path that cannot be made absolute matches no image.
    let image = absolute(image).unwrap_or_default();
    let (mut here, mut there) = (folder.components().peekable(), image.components().peekable());
    while here.peek().is_some() && here.peek() == there.peek() {
        here.next();
        there.next();
    }
    let up = here.map(|_| Component::ParentDir);
    let relative: PathBuf = up.chain(there).collect();
    shard::key(relative.as_os_str().as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_an_image_depends_only_on_its_path_relative_to_the_cache() {
        let key = |folder: &str, image: &str| {
            image_key(&absolute(Path::new(folder)).unwrap(), &ImageRef::from(image))
        };
        let first = key("/data/cache", "/data/images/a.png");
        assert_eq!(first, key("/data/cache", "/data/tables/../images/./a.png"));
        assert_eq!(first, key("/moved/to/cache", "/moved/to/images/a.png"));
        assert_ne!(first, key("/data/cache", "/data/images/b.png"));
        assert_ne!(first, key("/data/cache", "/data/cache/images/a.png"));
        assert_eq!(key("/data/cache", "/data/cache/x/a.png"), key("/other", "/other/x/a.png"));
    }
}
