//! The content of a caption: the objects and relations it mentions.

use super::background::Setting;
use super::color::NamedColor;
use super::shapes::Shape;

/// The size class of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SizeClass {
    Large,
    Medium,
    Small,
}

/// The pattern of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    Uniform,
    Striped,
    Spotted,
}

/// The appearance of an object, as captions name it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Looks {
    pub(super) size: SizeClass,
    pub(super) pattern: Pattern,
    pub(super) color: NamedColor,
    pub(super) shape: Shape,
}

/// An object, or a group of similar objects.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Subject {
    pub(super) looks: Looks,
    /// Number of objects.
    pub(super) count: usize,
    /// The center, or the mean of the centers.
    pub(super) middle: [f64; 2],
}

/// The spatial relation of an object to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    LeftOf,
    RightOf,
    Above,
    Below,
}

impl Relation {
    /// The relation of `first` to `other`, along the axis in which they are farther apart.
    pub(super) fn between(first: &Subject, other: &Subject) -> Self {
        let (across, down) = (first.middle[0] - other.middle[0], first.middle[1] - other.middle[1]);
        match (across.abs() >= down.abs(), across < 0.0, down < 0.0) {
            (true, true, _) => Self::LeftOf,
            (true, false, _) => Self::RightOf,
            (false, _, true) => Self::Above,
            (false, _, false) => Self::Below,
        }
    }

    pub(super) fn opposite(self) -> Self {
        match self {
            Self::LeftOf => Self::RightOf,
            Self::RightOf => Self::LeftOf,
            Self::Above => Self::Below,
            Self::Below => Self::Above,
        }
    }
}

/// A position in the image: row and column, each 0, 1 or 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) row: u8,
    pub(super) column: u8,
}

impl Position {
    pub(super) fn of(subject: &Subject) -> Self {
        let third = |at: f64| {
            if at < 0.38 {
                0
            } else if at <= 0.62 {
                1
            } else {
                2
            }
        };
        Self { row: third(subject.middle[1]), column: third(subject.middle[0]) }
    }

    /// The position opposite with respect to the center; for the center itself, the corner farthest from `subject`.
    pub(super) fn opposite(self, subject: &Subject) -> Self {
        if self == (Self { row: 1, column: 1 }) {
            let farthest = |at: f64| if at < 0.5 { 2 } else { 0 };
            return Self { row: farthest(subject.middle[1]), column: farthest(subject.middle[0]) };
        }
        Self { row: 2 - self.row, column: 2 - self.column }
    }
}

/// A subject, with the description of its position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stated {
    pub(super) subject: Subject,
    /// The relation of the first subject to this one.
    pub(super) relation: Option<Relation>,
    pub(super) position: Option<Position>,
}

/// The content of a caption: the objects with their relations or positions, and the background.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Description {
    pub(super) subjects: Vec<Stated>,
    pub(super) setting: Setting,
}

impl Description {
    /// Describes a scene. The position of a single object is included if `says_position`.
    pub(super) fn new(subjects: &[Subject], setting: Setting, says_position: bool) -> Self {
        let single = matches!(subjects, [one] if one.count == 1);
        let stated = |(index, &subject): (usize, &Subject)| {
            let related = (1..3).contains(&index) && subjects[0].count == 1;
            let positioned = index >= 3 || single && says_position;
            Stated {
                subject,
                relation: related.then(|| Relation::between(&subjects[0], &subject)),
                position: positioned.then(|| Position::of(&subject)),
            }
        };
        Self { subjects: subjects.iter().enumerate().map(stated).collect(), setting }
    }
}
