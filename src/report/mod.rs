//! Output for people: statistics of ratings, tables, images (PNG), TensorBoard events, and self-contained HTML pages.

pub mod contact_sheet;
pub mod event_file;
pub(crate) mod intervals;
pub(crate) mod page;
pub mod plot;
pub mod raster;
pub(crate) mod statistics;
pub(crate) mod text_table;
pub(crate) mod visible;

pub use contact_sheet::{SheetRow, Thumbnail, contact_sheet, decile_samples};
pub use event_file::EventFile;
pub use plot::{Kept, LossCurves, RatingHistogram, Series, loss_curves, rating_histogram};
pub use raster::Raster;
pub use statistics::{auroc, mean_percentile, spearman};
pub use text_table::TextTable;
