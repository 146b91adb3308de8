//! Weights as people have them.
