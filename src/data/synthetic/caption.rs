//! Captions of scenes.

/// An object, or a group of similar objects, with its position.
pub(super) struct Named {
    /// "large red circle"; plural for a group.
    pub(super) noun: String,
    /// Number of objects.
    pub(super) count: usize,
    /// The center, or the mean of the centers.
    pub(super) middle: [f64; 2],
}

impl Named {
    fn phrase(&self) -> String {
        match self.count {
            1 => with_article(&self.noun),
            2 => format!("two {}", self.noun),
            3 => format!("three {}", self.noun),
            _ => format!("four {}", self.noun),
        }
    }

    /// The spatial relation to `other`, such as "left of".
    fn relation(&self, other: &Self) -> &'static str {
        let (across, down) = (self.middle[0] - other.middle[0], self.middle[1] - other.middle[1]);
        match (across.abs() >= down.abs(), across < 0.0, down < 0.0) {
            (true, true, _) => "left of",
            (true, false, _) => "right of",
            (false, _, true) => "above",
            (false, _, false) => "below",
        }
    }

    fn position(&self) -> &'static str {
        let third = |at: f64| {
            if at < 0.38 {
                0
            } else if at <= 0.62 {
                1
            } else {
                2
            }
        };
        match (third(self.middle[1]), third(self.middle[0])) {
            (0, 0) => " in the upper left",
            (0, 1) => " at the top",
            (0, _) => " in the upper right",
            (1, 0) => " on the left",
            (1, 1) => " in the middle",
            (1, _) => " on the right",
            (_, 0) => " in the lower left",
            (_, 1) => " at the bottom",
            _ => " in the lower right",
        }
    }
}

/// The noun with "a" or "an".
pub(super) fn with_article(noun: &str) -> String {
    let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {noun}")
}

/// The caption: the objects with their relations, then the background. The position of a single object is included if
/// `says_position`.
pub(super) fn caption(things: &[Named], background: &str, says_position: bool) -> String {
    let words = match things {
        [] => String::new(),
        [group] if group.count > 1 => group.phrase(),
        [one] => format!("{}{}", one.phrase(), if says_position { one.position() } else { "" }),
        [first, second] if first.count > 1 => format!("{} and {}", first.phrase(), second.phrase()),
        [first, second] => format!("{} {} {}", first.phrase(), first.relation(second), second.phrase()),
        [first, second, third, rest @ ..] => {
            let beginning = format!(
                "{} {} {} and {} {}",
                first.phrase(),
                first.relation(second),
                second.phrase(),
                first.relation(third),
                third.phrase(),
            );
            let also: Vec<_> = rest.iter().map(|thing| thing.phrase() + thing.position()).collect();
            if also.is_empty() { beginning } else { format!("{beginning}, with {},", also.join(" and ")) }
        }
    };
    if words.is_empty() { background.to_owned() } else { format!("{words} {background}") }
}
