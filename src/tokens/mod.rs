//! The encoded corpus: tokenized records in batches, and the token cache that `encode` writes.

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

/// Name of the image tokenizer's folder, in a run and in a token cache.
pub(crate) const IMAGE_TOKENIZER_FOLDER: &str = "image_tokenizer";

/// Name of the text encoder's folder, in a run and in a token cache.
pub(crate) const TEXT_ENCODER_FOLDER: &str = "text_encoder";
