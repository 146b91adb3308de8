//! Records and images: corpus tables, image decoding and preprocessing, the synthetic corpus, and planted flaws.
//!
//! A [`corpus`] is read in batches of records, each with a reference to an image and a caption. The contents of a
//! [`location`] are read through its [`store`]. An [`image`] is decoded and cropped to a square on worker threads.
//! The [`synthetic`] corpus is generated, and [`corruption`] corrupts a known share of any corpus.

pub mod corpus;
pub mod corruption;
pub mod image;
pub mod location;
pub mod store;
pub mod synthetic;

pub(crate) use self::image::is_of_name;
pub use self::image::{
    ImageRef,
    loader::Loader,
    preprocess::{
        AlphaRule, FullImage, Preprocess, SquareImage, decode_image, load_full_image, load_image, stack,
    },
};
pub use corpus::{ColumnNames, Corpus, Cursor, Origin, Record, RecordBatch};
pub use location::Location;
