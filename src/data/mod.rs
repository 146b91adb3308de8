//! Records, their files and their flaws.

pub mod drawn;
pub mod flaws;
