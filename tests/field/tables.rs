//! Corpora in tables as people have them.
