//! Records and images: reading a corpus' table, decoding and preprocessing images ahead of their use, the built-in corpus, and
//! flaws planted in one.
//!
//! A [`corpus`] is a table of delimited text whose rows name an image and carry a caption. An [`image`] is decoded
//! and cut to a square on other threads. The [`synthetic`] corpus is drawn here, and [`corruption`] spoils a known share of any.

pub mod corpus;
pub mod corruption;
pub mod image;
pub mod location;
pub mod synthetic;

pub use self::image::{
    loader::Loader,
    preprocess::{
        AlphaRule, PictureBytes, Preprocess, WholePicture, decode_picture, load_picture, load_whole_picture,
        stack,
    },
};
pub use corpus::{ColumnNames, Corpus, Position, Record};
