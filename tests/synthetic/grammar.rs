//! Reads the captions of scenes back, so that a wrong one can be compared with the true one.

const COLORS: [&str; 12] = [
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "grey",
    "turquoise",
];
const SHAPES: [&str; 24] = [
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "diamond",
    "ring",
    "cross",
    "house",
    "tree",
    "fir tree",
    "boat",
    "sun",
    "moon",
    "fish",
    "flower",
    "car",
    "cloud",
    "mountain",
    "balloon",
    "mushroom",
    "apple",
    "butterfly",
    "bird",
];
const RELATIONS: [(&str, &str); 4] =
    [("left of", "right of"), ("right of", "left of"), ("above", "below"), ("below", "above")];
const POSITIONS: [(&str, &str); 9] = [
    ("in the upper left", "in the lower right"),
    ("at the top", "at the bottom"),
    ("in the upper right", "in the lower left"),
    ("on the left", "on the right"),
    ("in the middle", ""),
    ("on the right", "on the left"),
    ("in the lower left", "in the upper right"),
    ("at the bottom", "at the top"),
    ("in the lower right", "in the upper left"),
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) count: usize,
    pub(crate) size: &'static str,
    pub(crate) pattern: &'static str,
    pub(crate) color: &'static str,
    pub(crate) shape: &'static str,
}

/// A relation of the first subject to this one, or a position.
pub(crate) type Place = Option<&'static str>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) subjects: Vec<(Subject, Place)>,
    pub(crate) setting: String,
}

/// The opposite of a relation or position; any position but the middle itself is opposite to the middle.
pub(crate) fn are_opposite(left: &str, right: &str) -> bool {
    let pairs = || RELATIONS.iter().chain(&POSITIONS);
    let opposite = pairs().find(|pair| pair.0 == left).unwrap().1;
    if opposite.is_empty() {
        right != left && POSITIONS.iter().any(|pair| pair.0 == right)
    } else {
        opposite == right
    }
}

struct Reader<'a>(&'a str);

impl Reader<'_> {
    /// Takes one of the words or phrases if the text continues with it.
    fn take(&mut self, phrases: &[&'static str]) -> Option<&'static str> {
        let found = phrases.iter().find(|phrase| {
            self.0.strip_prefix(**phrase).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', ',']))
        })?;
        self.0 = self.0[found.len()..].trim_start();
        Some(found)
    }

    fn subject(&mut self) -> Option<Subject> {
        let count = match self.take(&["a", "an", "two", "three", "four"])? {
            "two" => 2,
            "three" => 3,
            "four" => 4,
            _ => 1,
        };
        let size = self.take(&["large", "small"]).unwrap_or("");
        let pattern = self.take(&["striped", "spotted"]).unwrap_or("");
        let color = self.take(&COLORS).expect("a color");
        let plural = |shape: &str| match shape {
            "fish" => "fish".to_owned(),
            "cross" => "crosses".to_owned(),
            "butterfly" => "butterflies".to_owned(),
            shape => format!("{shape}s"),
        };
        let written = |shape: &str| if count > 1 { plural(shape) } else { shape.to_owned() };
        let shape = SHAPES.iter().find(|shape| {
            self.0.strip_prefix(written(shape).as_str()).is_some_and(|rest| rest.starts_with([' ', ',']))
        });
        let shape = shape.unwrap_or_else(|| panic!("no shape in `{}`", self.0));
        self.0 = self.0[written(shape).len()..].trim_start();
        Some(Subject { count, size, pattern, color, shape })
    }
}

/// The content of a caption.
pub(crate) fn parse(caption: &str) -> Parsed {
    let mut reader = Reader(caption);
    let mut subjects = Vec::new();
    let relations = RELATIONS.map(|pair| pair.0);
    let positions = POSITIONS.map(|pair| pair.0);
    if let Some(first) = reader.subject() {
        let place = reader.take(&positions);
        subjects.push((first, place));
        loop {
            reader.take(&["and"]);
            if let Some(relation) = reader.take(&relations) {
                subjects.push((reader.subject().expect("another subject"), Some(relation)));
            } else if let Some(next) = reader.subject() {
                assert!(subjects.len() == 1 || caption.contains(", with "), "{caption}");
                let place = reader.take(&positions);
                subjects.push((next, place));
            } else if let Some(rest) = reader.0.strip_prefix(", with ") {
                reader.0 = rest;
            } else {
                break;
            }
        }
        reader.0 = reader.0.trim_start_matches(", ");
    }
    let setting = reader.0.to_owned();
    assert!(["on ", "in ", "over "].iter().any(|start| setting.starts_with(start)), "{caption}: {setting}");
    Parsed { subjects, setting }
}
