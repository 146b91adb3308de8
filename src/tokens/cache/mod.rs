//! The token cache: what `encode` keeps of a corpus, so that no epoch and no later command runs the image tokenizer or a large
//! text encoder again.
//!
//! A folder with `cache.json` (by what the tokens were made, and of what), the encoders as a run saves them, and shards. A
//! record is found by its image's path, seen from the cache's folder: the cache can be moved together with the images, and
//! a chosen subset or any other table of the same images is served as well. What is not in the cache, or is of an image that
//! was changed since, is made as without it.

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

/// Where something lies: the shard and the row in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    shard: u32,
    row: u32,
}

/// What is known of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cached {
    /// Its codes are there.
    At(Place),
    /// There are codes, but the file was changed since.
    Changed,
    /// It was not encoded.
    Absent,
}

/// A finished token cache, opened for reading.
pub struct TokenCache {
    folder: PathBuf,
    description: Description,
    codes: Vec<Codes>,
    text: Vec<Text>,
    images: HashMap<Key, Place>,
    captions: HashMap<Key, Place>,
}

impl TokenCache {
    /// Opens a cache. The files of codes are checked against their checksums, those of text states, which may be larger by far,
    /// against their lengths now and against their checksums before the first caption of each is used.
    ///
    /// # Errors
    /// If there is none, it is not finished, or a file is missing or damaged: `encode` then makes that shard again.
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
            return Err(damaged(
                &folder,
                "says that it holds text states, but there are none; encode the corpus again",
            ));
        }
        let (codes, text): (Vec<Codes>, Vec<Option<Text>>) = opened.into_iter().unzip();
        let text = text.into_iter().flatten().collect();
        Ok(Self { folder, description, codes, text, images, captions })
    }

    /// The cache that a configuration names.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub(crate) fn configured(config: &Config) -> Result<Option<Arc<Self>>> {
        Ok(config.data.token_cache.as_deref().map(Self::open).transpose()?.map(Arc::new))
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Images whose codes are kept.
    pub fn images(&self) -> usize {
        self.images.len()
    }

    /// Captions whose states are kept.
    pub fn captions(&self) -> usize {
        self.captions.len()
    }

    /// Whether states are rounded: what is trained on them is another thing than without the cache.
    pub(crate) fn rounds_text(&self) -> bool {
        self.description.text.as_ref().is_some_and(|text| text.kept == TextKept::Bf16)
    }

    /// The folder of the image tokenizer that made the codes.
    pub(crate) fn image_tokenizer(&self) -> PathBuf {
        image_tokenizer_folder(&self.folder)
    }

    /// The folder of the text encoder that made the states, if there are any.
    pub(crate) fn text_encoder(&self) -> Option<PathBuf> {
        self.description.text.as_ref().map(|_| text_encoder_folder(&self.folder))
    }

    /// The fingerprint of the text encoder that made the states, if there are any.
    pub(crate) fn text_fingerprint(&self) -> Option<&str> {
        self.description.text.as_ref().map(|text| text.encoder.as_str())
    }

    /// Refuses codes that this tokenizer would not give under this configuration.
    ///
    /// # Errors
    /// If another tokenizer made them, or the images were prepared otherwise.
    pub(crate) fn expect(&self, config: &Config, tokenizer: &dyn ImageTokenizer) -> Result<()> {
        let Description { side, patch_nums, image_tokenizer, preparation, .. } = &self.description;
        let quantizer = tokenizer.quantizer();
        if *side != tokenizer.image_side() || patch_nums != quantizer.patch_nums() {
            return Err(self.refuse(format!(
                "holds token maps of sides {patch_nums:?} of images of {side} pixels, but {:?} of {} pixels are needed",
                quantizer.patch_nums(),
                tokenizer.image_side()
            )));
        }
        let found = tokenizer.fingerprint();
        if *image_tokenizer != found {
            return Err(self.refuse(format!(
                "was made by another image tokenizer (fingerprint {} there, {} here)",
                short(image_tokenizer),
                short(&found)
            )));
        }
        let wanted = Preparation::of(&config.preprocess(*side));
        if *preparation != wanted {
            return Err(self.refuse(format!(
                "was made of images that were prepared otherwise ({preparation:?}, not {wanted:?}: see `compat`)"
            )));
        }
        Ok(())
    }

    /// Refuses states of another encoder than that of this fingerprint.
    ///
    /// # Errors
    /// If another one made them.
    pub(crate) fn expect_text(&self, found: &str) -> Result<()> {
        match self.text_fingerprint() {
            Some(kept) if kept != found => Err(self.refuse(format!(
                "holds the states of another text encoder (fingerprint {} there, {} here)",
                short(kept),
                short(found)
            ))),
            _ => Ok(()),
        }
    }

    fn refuse(&self, message: String) -> Error {
        damaged(
            &self.folder,
            format!("the token cache {message}; encode the corpus again, or leave token_cache out"),
        )
    }

    /// Whether the codes of an image are kept, and it was not changed since.
    pub fn holds(&self, image: &ImageRef) -> bool {
        matches!(self.find(image), Cached::At(_))
    }

    /// What there is of an image.
    pub(crate) fn find(&self, image: &ImageRef) -> Cached {
        match self.images.get(&image_key(&self.folder, image)) {
            None => Cached::Absent,
            Some(&place) => match self.codes[place.shard as usize].freshness(place.row as usize, image) {
                Freshness::Same => Cached::At(place),
                Freshness::Changed => Cached::Changed,
            },
        }
    }

    /// The codes `[L]` at a place.
    ///
    /// # Errors
    /// If one is beyond the vocabulary.
    pub(crate) fn codes(&self, place: Place) -> Result<Vec<u16>> {
        self.codes[place.shard as usize].codes(place.row as usize)
    }

    /// The SHA-256 of the file that the codes at a place were made of.
    pub(crate) fn digest(&self, place: Place) -> [u8; 32] {
        self.codes[place.shard as usize].digest(place.row as usize)
    }

    /// Reads everything that is kept: how many codes there are, and how many finite numbers of text states.
    ///
    /// # Errors
    /// If a code is beyond the vocabulary.
    pub fn read_all(&self) -> Result<(usize, usize)> {
        let mut codes = 0;
        for (shard, table) in self.codes.iter().enumerate() {
            for row in 0..table.keys().count() {
                let place = Place { shard: shard as u32, row: row as u32 };
                codes += self.codes(place)?.len();
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

/// The entries of all shards, which must follow on one another through all tables.
fn entries(folder: &Path, description: &Description) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    for table in 0..description.tables.len() {
        let mut from = None;
        loop {
            let number = entries.len();
            let path = shard::entry_path(folder, number);
            if !path.exists() {
                return Err(Error::invalid(format!(
                    "the token cache {} is not finished; give the `encode` command again that began it",
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

fn note(places: &mut HashMap<Key, Place>, shard: usize, keys: impl Iterator<Item = Key>) {
    for (row, key) in keys.enumerate() {
        if let (Ok(shard), Ok(row)) = (u32::try_from(shard), u32::try_from(row)) {
            // Where two tables hold one image, the first stays.
            places.entry(key).or_insert(Place { shard, row });
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
        "is missing, cut off or damaged; give the `encode` command again, which makes this shard anew",
    )
}

/// An absolute path without `.` and `..`, so that one file has one spelling.
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

/// What an image is found by: its path, seen from the cache's folder, which is absolute.
pub(crate) fn image_key(folder: &Path, image: &ImageRef) -> Key {
    let Some(image) = image.local() else {
        return shard::key(image.as_path().as_os_str().as_encoded_bytes());
    };
    // A path that cannot be made absolute is that of no image.
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
    fn a_image_has_one_key_however_it_is_spelled_and_wherever_the_whole_lies() {
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
