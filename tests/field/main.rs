//! Files as people really have them, replayed: each gives what its reference reader (Pillow, pyarrow, csv, PyTorch) gives, or is
//! refused by name. The inputs are made by the scripts next to this file.

mod images;
mod ratings;
mod tables;
mod weights;
