//! Records and pictures: reading the table, decoding and preprocessing pictures ahead of their use, and the order in
//! which samples are visited.
//!
//! A corpus is a table of delimited text ([`table`]) whose rows name a picture and carry a caption. A picture is decoded and cut to a
//! square ([`picture`], [`resample`]) on other threads ([`loader`]); [`sampler`] says which samples make a batch.

pub mod columns;
pub mod decode;
pub mod delimited;
pub mod drawn;
pub mod file_kind;
pub mod flaws;
mod folders;
pub mod loader;
pub mod moved;
pub mod picture;
pub mod planted;
pub mod resample;
pub mod rows;
pub mod sampler;
pub mod table;

pub(crate) use folders::image_folders;
pub use loader::Loader;
pub use moved::MovedPaths;
pub use picture::{
    AlphaRule, PictureBytes, Preprocess, WholePicture, decode_picture, load_picture, load_whole_picture,
    stack,
};
pub use sampler::{ReleasedOrder, ReleasedSampler, Sampler, torch_randperm};
pub use table::{ColumnNames, Corpus, Position, RELEASED_EMPTY_CAPTION, Record};
