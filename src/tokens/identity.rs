//! Detects changed images: this is how every resumed job notices that an image was replaced or deleted since it was
//! read.
//!
//! A file with the same length and times counts as unchanged; one with the same length but another time, such as a
//! copy, is hashed and compared by its digest. So nothing is read unless a file was touched, a copied or restored
//! corpus counts as unchanged, and a file replaced by another of the same length does not. On Unix the times include
//! that of the last status change (ctime), which programs cannot set.

use rayon::prelude::*;

use crate::{
    data::{ImageRef, store::Stamp},
    tokens::{
        cache::{Cached, TokenCache},
        stamp::{Image, ImageState},
    },
};

/// Stamps of images that are about to be read.
pub(crate) struct Looking {
    /// The stamp of each file, and the digest of each image that is in the token cache.
    before: Vec<(Option<Stamp>, Option<[u8; 32]>)>,
}

impl Looking {
    /// Records the stamps of images before they are read.
    pub(crate) fn at(images: &[&ImageRef], cache: Option<&TokenCache>) -> Self {
        let look = |image: &&ImageRef| {
            let cached = cache.and_then(|cache| match cache.find(image) {
                Cached::At(slot) => Some(cache.digest(slot)),
                _ => None,
            });
            (image.stamp(), cached)
        };
        Self { before: images.par_iter().map(look).collect() }
    }

    /// The states of the images after they were read, or the index of one that changed meanwhile.
    pub(crate) fn states(self, images: &[&ImageRef]) -> Result<Vec<ImageState>, usize> {
        let state = |(at, (stamp, cached)): (usize, (Option<Stamp>, Option<[u8; 32]>))| {
            let Some(stamp) = stamp else {
                // The cache also serves images whose files do not exist.
                return Ok(cached.map(|digest| Image::served(&digest)));
            };
            let digest = cached.or_else(|| images[at].digest().ok());
            match images[at].stamp() == Some(stamp) {
                true => Ok(Some(Image::new(stamp, digest.as_ref()))),
                false => Err(at),
            }
        };
        self.before.into_par_iter().enumerate().map(state).collect()
    }
}

/// The index of the first image that is no longer in its recorded state.
pub(crate) fn first_changed(
    images: &[(&ImageRef, &ImageState)],
    cache: Option<&TokenCache>,
) -> Option<usize> {
    images.par_iter().position_first(|(image, recorded)| !is_still(image, recorded, cache))
}

fn is_still(image: &ImageRef, recorded: &ImageState, cache: Option<&TokenCache>) -> bool {
    match (image.stamp(), recorded) {
        (Some(stamp), Some(recorded)) => recorded.is_still(image, stamp),
        (Some(_), None) => false,
        // The cache serves an image whose file does not exist.
        (None, recorded) => {
            let cached = cache.and_then(|cache| match cache.find(image) {
                Cached::At(slot) => Some(cache.digest(slot)),
                _ => None,
            });
            match (cached, recorded) {
                (None, None) => true,
                (Some(cached), Some(recorded)) => recorded.has_digest(&cached),
                _ => false,
            }
        }
    }
}

/// Whether two recorded states are the same.
pub(crate) fn are_same(one: &ImageState, other: &ImageState) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => one.is_same(other),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        time::{Duration, SystemTime},
    };

    use super::*;

    #[test]
    fn a_replaced_or_deleted_file_is_noticed_and_a_copy_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (image, absent) = (folder.path().join("a.png"), folder.path().join("b.png"));
        fs::write(&image, "first").unwrap();
        let [first, second] = [&image, &absent].map(ImageRef::from);
        let images = [&first, &second];
        let states = Looking::at(&images, None).states(&images).unwrap();
        let changed = || first_changed(&[(&first, &states[0]), (&second, &states[1])], None);
        assert_eq!(changed(), None);
        // The same bytes with another time: a copy.
        let later = SystemTime::now() + Duration::from_secs(60);
        fs::File::options().write(true).open(&image).unwrap().set_modified(later).unwrap();
        assert_eq!(changed(), None);
        let time = fs::metadata(&image).unwrap().modified().unwrap();
        fs::write(&image, "other").unwrap();
        assert_eq!(changed(), Some(0));
        // Also with the length and time of the original.
        fs::File::options().write(true).open(&image).unwrap().set_modified(time).unwrap();
        assert_eq!(changed(), Some(0));
        fs::remove_file(&image).unwrap();
        assert_eq!(changed(), Some(0));
        fs::write(&image, "first").unwrap();
        assert_eq!(changed(), None);
        fs::write(&absent, "new").unwrap();
        assert_eq!(changed(), Some(1));
        // Changed while it was being read.
        let looking = Looking::at(&images, None);
        fs::write(&absent, "newer").unwrap();
        assert_eq!(looking.states(&images), Err(1));
    }
}
