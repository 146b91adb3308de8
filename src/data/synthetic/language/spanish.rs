//! Spanish. Adjectives follow the noun and agree with it.

use super::joined;
use crate::data::synthetic::{
    background::{Ground, Kind, Preposition, Setting, Time},
    color::NamedColor,
    description::{Description, Looks, Pattern, Position, Relation, SizeClass, Stated, Subject},
    shapes::Shape,
};

/// The form of an adjective: feminine or not, plural or not.
#[derive(Clone, Copy)]
struct Form {
    feminine: bool,
    plural: bool,
}

/// The description in Spanish.
pub(super) fn spanish(description: &Description) -> String {
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
            (Some(to), _) => words = format!("{words} y {} {named}", relation(to)),
            (None, Some(place)) => also.push(format!("{named} {}", position(place))),
            (None, None) => words = format!("{words} y {named}"),
        }
    }
    if also.is_empty() { words } else { format!("{words}, con {},", also.join(" y ")) }
}

fn phrase(subject: &Subject) -> String {
    let Looks { size, pattern, color: named, shape } = subject.looks;
    let (feminine, one, several) = noun(shape);
    let form = Form { feminine, plural: subject.count > 1 };
    let number = match subject.count {
        1 if feminine => "una",
        1 => "un",
        2 => "dos",
        3 => "tres",
        _ => "cuatro",
    };
    let size = match size {
        SizeClass::Large => ended("grande", form),
        SizeClass::Medium => String::new(),
        SizeClass::Small => ended("pequeño", form),
    };
    let pattern = match pattern {
        Pattern::Uniform => "",
        Pattern::Striped => "a rayas",
        Pattern::Spotted => "de lunares",
    };
    joined([number, if form.plural { several } else { one }, &size, &ended(color(named), form), pattern])
}

/// Whether it is feminine, singular and plural.
fn noun(shape: Shape) -> (bool, &'static str, &'static str) {
    match shape {
        Shape::Circle => (false, "círculo", "círculos"),
        Shape::Square => (false, "cuadrado", "cuadrados"),
        Shape::Triangle => (false, "triángulo", "triángulos"),
        Shape::Star => (true, "estrella", "estrellas"),
        Shape::Heart => (false, "corazón", "corazones"),
        Shape::Diamond => (false, "rombo", "rombos"),
        Shape::Ring => (false, "anillo", "anillos"),
        Shape::Cross => (true, "cruz", "cruces"),
        Shape::House => (true, "casa", "casas"),
        Shape::Tree => (false, "árbol", "árboles"),
        Shape::FirTree => (false, "abeto", "abetos"),
        Shape::Boat => (false, "barco", "barcos"),
        Shape::Sun => (false, "sol", "soles"),
        Shape::Moon => (true, "luna", "lunas"),
        Shape::Fish => (false, "pez", "peces"),
        Shape::Flower => (true, "flor", "flores"),
        Shape::Car => (false, "coche", "coches"),
        Shape::Cloud => (true, "nube", "nubes"),
        Shape::Mountain => (true, "montaña", "montañas"),
        Shape::Balloon => (false, "globo", "globos"),
        Shape::Mushroom => (true, "seta", "setas"),
        Shape::Apple => (true, "manzana", "manzanas"),
        Shape::Butterfly => (true, "mariposa", "mariposas"),
        Shape::Bird => (false, "pájaro", "pájaros"),
    }
}

/// The masculine singular, which is also the noun.
fn color(color: NamedColor) -> &'static str {
    match color.name {
        "red" => "rojo",
        "orange" => "naranja",
        "yellow" => "amarillo",
        "green" => "verde",
        "blue" => "azul",
        "purple" => "morado",
        "pink" => "rosa",
        "brown" => "marrón",
        "black" => "negro",
        "white" => "blanco",
        "turquoise" => "turquesa",
        _ => "gris",
    }
}

/// An adjective in the form of its noun.
fn ended(adjective: &str, form: Form) -> String {
    let singular = match adjective.strip_suffix('o') {
        Some(stem) if form.feminine => format!("{stem}a"),
        _ => adjective.to_owned(),
    };
    match singular.chars().next_back() {
        _ if !form.plural => singular,
        Some('a' | 'e' | 'o') => singular + "s",
        // The accent of "marrón" is on its last syllable, which the plural shifts.
        _ => singular.replace('ó', "o") + "es",
    }
}

fn relation(relation: Relation) -> &'static str {
    match relation {
        Relation::LeftOf => "a la izquierda de",
        Relation::RightOf => "a la derecha de",
        Relation::Above => "encima de",
        Relation::Below => "debajo de",
    }
}

fn position(position: Position) -> &'static str {
    match (position.row, position.column) {
        (0, 0) => "arriba a la izquierda",
        (0, 1) => "arriba",
        (0, _) => "arriba a la derecha",
        (1, 0) => "a la izquierda",
        (1, 1) => "en el centro",
        (1, _) => "a la derecha",
        (_, 0) => "abajo a la izquierda",
        (_, 1) => "abajo",
        _ => "abajo a la derecha",
    }
}

fn setting(setting: &Setting) -> String {
    let feminine = |named: NamedColor| ended(color(named), Form { feminine: true, plural: true });
    let masculine = |named: NamedColor| ended(color(named), Form { feminine: false, plural: true });
    match setting.kind {
        Kind::Landscape(ground, time) => {
            let preposition = if setting.preposition == Preposition::In { "en" } else { "sobre" };
            let surface = match ground {
                Ground::Grass => "hierba verde",
                Ground::Sand => "arena amarilla",
                Ground::Sea => "el mar",
                Ground::Snow => "la nieve",
            };
            let weather = match time {
                Time::Day if setting.says_weather => "bajo un cielo azul",
                Time::Day => "",
                Time::Sunset => "al atardecer",
                Time::Night => "de noche",
            };
            joined([preposition, surface, weather])
        }
        Kind::Sky(Time::Day) => "en un cielo azul".to_owned(),
        Kind::Sky(Time::Sunset) => "en el cielo al atardecer".to_owned(),
        Kind::Sky(Time::Night) => "en el cielo nocturno".to_owned(),
        Kind::Flat(named) => format!("sobre un fondo {}", color(named)),
        Kind::Fade { from, to, .. } => {
            format!("sobre un fondo degradado de {} a {}", color(from), color(to))
        }
        Kind::Stripes(first, second) => format!("sobre rayas {} y {}", feminine(first), feminine(second)),
        Kind::Checks(first, second) => format!("sobre cuadros {} y {}", masculine(first), masculine(second)),
        Kind::Dots(first, second) => {
            format!("sobre un fondo {} con lunares {}", color(first), masculine(second))
        }
    }
}
