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
