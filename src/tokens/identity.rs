//! What the files of images are known by: the one rule by which a job that goes on notices that an image was replaced or
//! deleted since it was read.
//!
//! A file of the same length and times is taken to be the same; one of the same length and another time, such as a copy, is
//! read and compared by its digest. So a job looks at the names alone as long as nothing was touched, a corpus that was copied
//! or restored still is the same corpus, and a file that was replaced by one of the same length is another. On Unix the time of
//! the last change of state counts as well, which a program cannot set back.

use rayon::prelude::*;

use crate::{
    data::{ImageRef, store::Stamp},
    tokens::{
        cache::{Cached, TokenCache},
        stamp::{Image, Seen},
    },
};

/// Images about to be read.
pub(crate) struct Looking {
    /// What is known without reading: those that the token cache serves.
    before: Vec<(Option<Stamp>, Option<[u8; 32]>)>,
}

impl Looking {
    /// Looks at images before they are read.
    pub(crate) fn at(images: &[&ImageRef], cache: Option<&TokenCache>) -> Self {
        let look = |image: &&ImageRef| {
            let held = cache.and_then(|cache| match cache.find(image) {
                Cached::At(place) => Some(cache.digest(place)),
                _ => None,
            });
            (image.stamp(), held)
        };
        Self { before: images.par_iter().map(look).collect() }
    }

    /// What they were, now that they have been read; or which of them was changed meanwhile.
    pub(crate) fn seen(self, images: &[&ImageRef]) -> Result<Vec<Seen>, usize> {
        let see = |(at, (stamp, held)): (usize, (Option<Stamp>, Option<[u8; 32]>))| {
            let Some(stamp) = stamp else {
                // The cache serves without the files, too.
                return Ok(held.map(|held| Image::served(&held)));
            };
            let digest = held.or_else(|| images[at].digest().ok());
            match images[at].stamp() == Some(stamp) {
                true => Ok(Some(Image::new(stamp, digest.as_ref()))),
                false => Err(at),
            }
        };
        self.before.into_par_iter().enumerate().map(see).collect()
    }
}

/// The first image that is not what it was.
pub(crate) fn first_changed(images: &[(&ImageRef, &Seen)], cache: Option<&TokenCache>) -> Option<usize> {
    images.par_iter().position_first(|(image, seen)| !is_still(image, seen, cache))
}

fn is_still(image: &ImageRef, seen: &Seen, cache: Option<&TokenCache>) -> bool {
    match (image.stamp(), seen) {
        (Some(stamp), Some(seen)) => seen.is_still(image, stamp),
        (Some(_), None) => false,
        // What is read in place of a file that is not there.
        (None, seen) => {
            let held = cache.and_then(|cache| match cache.find(image) {
                Cached::At(place) => Some(cache.digest(place)),
                _ => None,
            });
            match (held, seen) {
                (None, None) => true,
                (Some(held), Some(seen)) => seen.has_digest(&held),
                _ => false,
            }
        }
    }
}

/// Whether two looks at an image found the same.
pub(crate) fn are_same(one: &Seen, other: &Seen) -> bool {
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
        let seen = Looking::at(&images, None).seen(&images).unwrap();
        let changed = || first_changed(&[(&first, &seen[0]), (&second, &seen[1])], None);
        assert_eq!(changed(), None);
        // The same bytes under another time: a copy.
        let later = SystemTime::now() + Duration::from_secs(60);
        fs::File::options().write(true).open(&image).unwrap().set_modified(later).unwrap();
        assert_eq!(changed(), None);
        let time = fs::metadata(&image).unwrap().modified().unwrap();
        fs::write(&image, "other").unwrap();
        assert_eq!(changed(), Some(0));
        // Not even with its length and time.
        fs::File::options().write(true).open(&image).unwrap().set_modified(time).unwrap();
        assert_eq!(changed(), Some(0));
        fs::remove_file(&image).unwrap();
        assert_eq!(changed(), Some(0));
        fs::write(&image, "first").unwrap();
        assert_eq!(changed(), None);
        fs::write(&absent, "new").unwrap();
        assert_eq!(changed(), Some(1));
        // Changed while it was read.
        let looking = Looking::at(&images, None);
        fs::write(&absent, "newer").unwrap();
        assert_eq!(looking.seen(&images), Err(1));
    }
}
