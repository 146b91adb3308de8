//! German. A first subject is in the nominative, one after a preposition in the dative.

use super::joined;
use crate::data::synthetic::{
    background::{Ground, Kind, Preposition, Setting, Time},
    color::NamedColor,
    description::{Description, Looks, Pattern, Position, Relation, SizeClass, Stated, Subject},
    shapes::Shape,
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Nominative,
    Dative,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Gender {
    Masculine,
    Feminine,
    Neuter,
}

use Gender::{Feminine, Masculine, Neuter};

/// The description in German.
pub(super) fn german(description: &Description) -> String {
    joined([&subjects(&description.subjects), &setting(&description.setting)])
}

fn subjects(stated: &[Stated]) -> String {
    let Some((first, others)) = stated.split_first() else { return String::new() };
    let mut words = phrase(&first.subject, Case::Nominative);
    if let Some(place) = first.position {
        words = format!("{words} {}", position(place));
    }
    let mut also = Vec::new();
    for (index, other) in others.iter().enumerate() {
        let dative = phrase(&other.subject, Case::Dative);
        match (other.relation, other.position) {
            (Some(to), _) if index == 0 => words = format!("{words} {} {dative}", relation(to)),
            (Some(to), _) => words = format!("{words} und {} {dative}", relation(to)),
            (None, Some(place)) => also.push(format!("{dative} {}", position(place))),
            (None, None) => words = format!("{words} und {}", phrase(&other.subject, Case::Nominative)),
        }
    }
    if also.is_empty() { words } else { format!("{words}, mit {},", also.join(" und ")) }
}

fn phrase(subject: &Subject, case: Case) -> String {
    let (gender, one, dative, several) = noun(subject.looks.shape);
    let number = match subject.count {
        1 => match (gender, case) {
            (Masculine | Neuter, Case::Nominative) => "ein",
            (Feminine, Case::Nominative) => "eine",
            (Masculine | Neuter, Case::Dative) => "einem",
            (Feminine, Case::Dative) => "einer",
        },
        2 => "zwei",
        3 => "drei",
        _ => "vier",
    };
    let ending = match (subject.count, gender, case) {
        (_, _, Case::Dative) => "en",
        (1, Masculine, _) => "er",
        (1, Neuter, _) => "es",
        _ => "e",
    };
    let noun = match (subject.count, case) {
        (1, Case::Nominative) => one,
        (1, Case::Dative) => dative,
        _ => several,
    };
    joined([number, &adjectives(&subject.looks, ending), noun])
}

fn adjectives(looks: &Looks, ending: &str) -> String {
    let size = match looks.size {
        SizeClass::Large => "groß",
        SizeClass::Medium => "",
        SizeClass::Small => "klein",
    };
    let pattern = match looks.pattern {
        Pattern::Uniform => "",
        Pattern::Striped => "gestreift",
        Pattern::Spotted => "gepunktet",
    };
    let ended = |stem: &str| if stem.is_empty() { String::new() } else { format!("{stem}{ending}") };
    joined([&ended(size), &ended(pattern), &ended(color(looks.color).0)])
}

/// Gender, nominative, dative and plural.
fn noun(shape: Shape) -> (Gender, &'static str, &'static str, &'static str) {
    match shape {
        Shape::Circle => (Masculine, "Kreis", "Kreis", "Kreise"),
        Shape::Square => (Neuter, "Quadrat", "Quadrat", "Quadrate"),
        Shape::Triangle => (Neuter, "Dreieck", "Dreieck", "Dreiecke"),
        Shape::Star => (Masculine, "Stern", "Stern", "Sterne"),
        Shape::Heart => (Neuter, "Herz", "Herzen", "Herzen"),
        Shape::Diamond => (Feminine, "Raute", "Raute", "Rauten"),
        Shape::Ring => (Masculine, "Ring", "Ring", "Ringe"),
        Shape::Cross => (Neuter, "Kreuz", "Kreuz", "Kreuze"),
        Shape::House => (Neuter, "Haus", "Haus", "Häuser"),
        Shape::Tree => (Masculine, "Baum", "Baum", "Bäume"),
        Shape::FirTree => (Feminine, "Tanne", "Tanne", "Tannen"),
        Shape::Boat => (Neuter, "Boot", "Boot", "Boote"),
        Shape::Sun => (Feminine, "Sonne", "Sonne", "Sonnen"),
        Shape::Moon => (Masculine, "Mond", "Mond", "Monde"),
        Shape::Fish => (Masculine, "Fisch", "Fisch", "Fische"),
        Shape::Flower => (Feminine, "Blume", "Blume", "Blumen"),
        Shape::Car => (Neuter, "Auto", "Auto", "Autos"),
        Shape::Cloud => (Feminine, "Wolke", "Wolke", "Wolken"),
        Shape::Mountain => (Masculine, "Berg", "Berg", "Berge"),
        Shape::Balloon => (Masculine, "Ballon", "Ballon", "Ballons"),
        Shape::Mushroom => (Masculine, "Pilz", "Pilz", "Pilze"),
        Shape::Apple => (Masculine, "Apfel", "Apfel", "Äpfel"),
        Shape::Butterfly => (Masculine, "Schmetterling", "Schmetterling", "Schmetterlinge"),
        Shape::Bird => (Masculine, "Vogel", "Vogel", "Vögel"),
    }
}

/// The stem of the adjective, and the noun.
fn color(color: NamedColor) -> (&'static str, &'static str) {
    match color.name {
        "red" => ("rot", "Rot"),
        "orange" => ("orangefarben", "Orange"),
        "yellow" => ("gelb", "Gelb"),
        "green" => ("grün", "Grün"),
        "blue" => ("blau", "Blau"),
        "purple" => ("violett", "Violett"),
        "pink" => ("rosafarben", "Rosa"),
        "brown" => ("braun", "Braun"),
        "black" => ("schwarz", "Schwarz"),
        "white" => ("weiß", "Weiß"),
        "turquoise" => ("türkisfarben", "Türkis"),
        _ => ("grau", "Grau"),
    }
}

fn relation(relation: Relation) -> &'static str {
    match relation {
        Relation::LeftOf => "links von",
        Relation::RightOf => "rechts von",
        Relation::Above => "über",
        Relation::Below => "unter",
    }
}

fn position(position: Position) -> &'static str {
    match (position.row, position.column) {
        (0, 0) => "oben links",
        (0, 1) => "oben",
        (0, _) => "oben rechts",
        (1, 0) => "links",
        (1, 1) => "in der Mitte",
        (1, _) => "rechts",
        (_, 0) => "unten links",
        (_, 1) => "unten",
        _ => "unten rechts",
    }
}

fn setting(setting: &Setting) -> String {
    match setting.kind {
        Kind::Landscape(ground, time) => {
            let preposition = match setting.preposition {
                Preposition::Over => "über",
                Preposition::In => "in",
                Preposition::On => "auf",
            };
            let surface = match ground {
                Ground::Grass => "grünem Gras",
                Ground::Sand => "gelbem Sand",
                Ground::Sea => "dem Meer",
                Ground::Snow => "Schnee",
            };
            let weather = match time {
                Time::Day if setting.says_weather => "unter blauem Himmel",
                Time::Day => "",
                Time::Sunset => "bei Sonnenuntergang",
                Time::Night => "bei Nacht",
            };
            joined([preposition, surface, weather]).replace("in dem Meer", "im Meer")
        }
        Kind::Sky(Time::Day) => "am blauen Himmel".to_owned(),
        Kind::Sky(Time::Sunset) => "am Himmel bei Sonnenuntergang".to_owned(),
        Kind::Sky(Time::Night) => "am Nachthimmel".to_owned(),
        Kind::Flat(named) => format!("auf {}em Hintergrund", color(named).0),
        Kind::Fade { from, to, .. } => {
            format!("auf einem Hintergrund mit Verlauf von {} zu {}", color(from).1, color(to).1)
        }
        Kind::Stripes(first, second) => {
            format!("auf {}en und {}en Streifen", color(first).0, color(second).0)
        }
        Kind::Checks(first, second) => format!("auf {}en und {}en Karos", color(first).0, color(second).0),
        Kind::Dots(first, second) => {
            format!("auf {}em Hintergrund mit {}en Punkten", color(first).0, color(second).0)
        }
    }
}
