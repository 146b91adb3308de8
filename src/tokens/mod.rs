//! The encoded corpus: the records of a table, tokenized, in batches; and the cache in which `encode` keeps tokens.

pub mod batch;
pub mod cache;
pub mod encode;
pub mod encoded;
pub mod encoders;
pub mod fitting;
pub(crate) mod identity;
pub mod records;
pub(crate) mod stamp;
pub mod tokenize;

/// The folder of the image tokenizer, in a run and in a token cache.
pub(crate) const IMAGE_TOKENIZER_FOLDER: &str = "image_tokenizer";

/// The folder of the text encoder, in a run and in a token cache.
pub(crate) const TEXT_ENCODER_FOLDER: &str = "text_encoder";
