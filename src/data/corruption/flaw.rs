//! The flaws by name.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The flaw of a record.
///
/// New flaws go to the end: the order assigns them in [`plan`](super::plan), and selects their colors on pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flaw {
    /// None.
    Clean,
    /// The image is a single color; the caption is unchanged.
    Plain,
    /// The image is mostly noise; the caption is unchanged.
    Noise,
    /// The image is strongly blurred; the caption is unchanged.
    Blur,
    /// The caption is another record's; the image is unchanged.
    WrongCaption,
    /// Image and caption are another record's.
    Duplicate,
    /// The image has strong JPEG artifacts; the caption is unchanged.
    Jpeg,
    /// The image has a watermark; the caption is unchanged.
    Watermark,
    /// The caption is that of a similar record, of the same category if there are categories; the image is unchanged.
    NeighborCaption,
    /// The caption is cut off after its first words; the image is unchanged.
    TruncatedCaption,
    /// The caption says nothing, such as "an image of something"; the image is unchanged.
    GenericCaption,
    /// The caption is a file name or a phrase of web pages, such as "add to cart"; the image is unchanged.
    BoilerplateCaption,
    /// The caption is in another language and has nothing to do with the image, which is unchanged.
    ForeignCaption,
    /// The caption is translated into another language; the image is unchanged.
    TranslatedCaption,
    /// One color, size or pattern in the caption is wrong; the image is unchanged.
    WrongAttribute,
    /// The number of objects in the caption is wrong; the image is unchanged.
    WrongCount,
    /// One position or spatial relation in the caption is wrong; the image is unchanged.
    WrongPosition,
    /// The caption exchanges two objects; the image is unchanged.
    SwappedSubjects,
    /// The image is a crop of another record's, with its caption.
    CroppedDuplicate,
    /// The image is another record's mirrored, with its caption.
    FlippedDuplicate,
    /// The image is another record's after JPEG compression, with its caption.
    RecompressedDuplicate,
}

impl Flaw {
    /// Every variant, [`Flaw::Clean`] first.
    pub const ALL: [Self; 21] = [
        Self::Clean,
        Self::Plain,
        Self::Noise,
        Self::Blur,
        Self::WrongCaption,
        Self::Duplicate,
        Self::Jpeg,
        Self::Watermark,
        Self::NeighborCaption,
        Self::TruncatedCaption,
        Self::GenericCaption,
        Self::BoilerplateCaption,
        Self::ForeignCaption,
        Self::TranslatedCaption,
        Self::WrongAttribute,
        Self::WrongCount,
        Self::WrongPosition,
        Self::SwappedSubjects,
        Self::CroppedDuplicate,
        Self::FlippedDuplicate,
        Self::RecompressedDuplicate,
    ];

    /// The name in tables and CSV files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Plain => "plain",
            Self::Noise => "noise",
            Self::Blur => "blur",
            Self::WrongCaption => "wrong_caption",
            Self::Duplicate => "duplicate",
            Self::Jpeg => "jpeg",
            Self::Watermark => "watermark",
            Self::NeighborCaption => "neighbor_caption",
            Self::TruncatedCaption => "truncated_caption",
            Self::GenericCaption => "generic_caption",
            Self::BoilerplateCaption => "boilerplate_caption",
            Self::ForeignCaption => "foreign_caption",
            Self::TranslatedCaption => "translated_caption",
            Self::WrongAttribute => "wrong_attribute",
            Self::WrongCount => "wrong_count",
            Self::WrongPosition => "wrong_position",
            Self::SwappedSubjects => "swapped_subjects",
            Self::CroppedDuplicate => "cropped_duplicate",
            Self::FlippedDuplicate => "flipped_duplicate",
            Self::RecompressedDuplicate => "recompressed_duplicate",
        }
    }

    /// Whether the flaw takes a caption or an image from another record.
    pub fn needs_source(self) -> bool {
        matches!(self, Self::WrongCaption | Self::NeighborCaption) || self.copies_image()
    }

    /// Whether image and caption are another record's; the image may then be changed.
    pub fn copies_image(self) -> bool {
        matches!(
            self,
            Self::Duplicate | Self::CroppedDuplicate | Self::FlippedDuplicate | Self::RecompressedDuplicate
        )
    }

    /// Whether the record's own image is corrupted.
    pub fn corrupts_image(self) -> bool {
        matches!(self, Self::Plain | Self::Noise | Self::Blur | Self::Jpeg | Self::Watermark)
    }

    /// Whether the flaw needs the scene of an image, which is known only for the synthetic data set.
    pub fn needs_scene(self) -> bool {
        matches!(
            self,
            Self::TranslatedCaption
                | Self::WrongAttribute
                | Self::WrongCount
                | Self::WrongPosition
                | Self::SwappedSubjects
        )
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Flaw {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|flaw| flaw.name() == name).ok_or_else(|| {
            let flaws = Self::ALL.iter().filter(|&&flaw| flaw != Self::Clean);
            let names: Vec<_> = flaws.map(|flaw| flaw.name()).collect();
            Error::argument(format!("unknown flaw `{name}`; expected one of {}", names.join(", ")))
        })
    }
}
