//! English: the captions of the data set.

use super::joined;
use crate::data::synthetic::{
    background::{Ground, Kind, Preposition, Setting, Time},
    description::{Description, Looks, Pattern, Position, Relation, SizeClass, Stated, Subject},
};

/// The caption of a scene.
pub(in crate::data::synthetic) fn english(description: &Description) -> String {
    joined([&subjects(&description.subjects), &setting(&description.setting)])
}

fn subjects(stated: &[Stated]) -> String {
    let Some((first, others)) = stated.split_first() else { return String::new() };
    let mut words = phrase(&first.subject);
    if let Some(place) = first.position {
        words = format!("{words} {}", position(place));
    }
    let mut also = Vec::new();
    for (index, other) in others.iter().enumerate() {
        let named = phrase(&other.subject);
        match (other.relation, other.position) {
            (Some(to), _) if index == 0 => words = format!("{words} {} {named}", relation(to)),
            (Some(to), _) => words = format!("{words} and {} {named}", relation(to)),
            (None, Some(place)) => also.push(format!("{named} {}", position(place))),
            (None, None) => words = format!("{words} and {named}"),
        }
    }
    if also.is_empty() { words } else { format!("{words}, with {},", also.join(" and ")) }
}

fn phrase(subject: &Subject) -> String {
    let number = match subject.count {
        1 => return with_article(&noun(&subject.looks, false)),
        2 => "two",
        3 => "three",
        _ => "four",
    };
    format!("{number} {}", noun(&subject.looks, true))
}

/// "large red circle", or its plural.
fn noun(looks: &Looks, plural: bool) -> String {
    let size = match looks.size {
        SizeClass::Large => "large",
        SizeClass::Medium => "",
        SizeClass::Small => "small",
    };
    let pattern = match looks.pattern {
        Pattern::Uniform => "",
        Pattern::Striped => "striped",
        Pattern::Spotted => "spotted",
    };
    let (one, several) = looks.shape.words();
    joined([size, pattern, looks.color.name, if plural { several } else { one }])
}

/// The noun with "a" or "an".
fn with_article(noun: &str) -> String {
    let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {noun}")
}

fn relation(relation: Relation) -> &'static str {
    match relation {
        Relation::LeftOf => "left of",
        Relation::RightOf => "right of",
        Relation::Above => "above",
        Relation::Below => "below",
    }
}

fn position(position: Position) -> &'static str {
    match (position.row, position.column) {
        (0, 0) => "in the upper left",
        (0, 1) => "at the top",
        (0, _) => "in the upper right",
        (1, 0) => "on the left",
        (1, 1) => "in the middle",
        (1, _) => "on the right",
        (_, 0) => "in the lower left",
        (_, 1) => "at the bottom",
        _ => "in the lower right",
    }
}

/// The background, with a preposition.
fn setting(setting: &Setting) -> String {
    match setting.kind {
        Kind::Landscape(ground, time) => {
            let surface = match ground {
                Ground::Grass => "green grass",
                Ground::Sand => "yellow sand",
                Ground::Sea => "the sea",
                Ground::Snow => "snow",
            };
            let preposition = match setting.preposition {
                Preposition::Over => "over",
                Preposition::In => "in",
                Preposition::On => "on",
            };
            let weather = match time {
                Time::Day if setting.says_weather => "under a blue sky",
                Time::Day => "",
                Time::Sunset => "at sunset",
                Time::Night => "at night",
            };
            joined([preposition, surface, weather])
        }
        Kind::Sky(Time::Day) => "in a blue sky".to_owned(),
        Kind::Sky(Time::Sunset) => "in the sky at sunset".to_owned(),
        Kind::Sky(Time::Night) => "in the night sky".to_owned(),
        Kind::Flat(color) => format!("on {} background", with_article(color.name)),
        Kind::Fade { from, to, .. } => {
            format!("on a background fading from {} to {}", from.name, to.name)
        }
        Kind::Stripes(first, second) => format!("on {} and {} stripes", first.name, second.name),
        Kind::Checks(first, second) => format!("on {} and {} checks", first.name, second.name),
        Kind::Dots(first, second) => {
            format!("on {} background with {} dots", with_article(first.name), second.name)
        }
    }
}
