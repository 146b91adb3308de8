//! Records and images: reading a corpus' table, decoding and preprocessing images ahead of their use, the built-in corpus, and
//! flaws planted in one.
//!
//! A [`corpus`] is read in batches of records, each of which refers to an image and carries a caption. What lies at a [`location`] is
//! read through its [`store`]. An [`image`] is decoded and cut to a square on other threads. The [`synthetic`] corpus is drawn here, and [`corruption`] spoils a known share of any.

pub mod corpus;
pub mod corruption;
pub mod image;
pub mod location;
pub mod store;
pub mod synthetic;

pub use self::image::{
    ImageRef,
    loader::Loader,
    preprocess::{
        AlphaRule, FullImage, Preprocess, SquareImage, decode_image, load_full_image, load_image, stack,
    },
};
pub use corpus::{Batch, ColumnNames, Corpus, Cursor, Origin, Record};
pub use location::Location;
