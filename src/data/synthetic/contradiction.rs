//! Changes descriptions so that the image contradicts them in one point. The grammar is the same, so that each reads
//! like a true caption.

use super::background::{Kind, Setting, Time};
use super::color::{
    BLACK, BROWN, GRAY, GREEN, NamedColor, ORANGE, RED, WHITE, YELLOW, pick, squared_distance,
};
use super::description::{Description, Looks, Pattern, Position, Relation, SizeClass, Subject};
use super::shapes::Shape;
use crate::{data::corruption::Flaw, engine::Random};

/// Minimum squared distance of two colors that are not confused, such as red and blue, but not red and orange.
const DISTINCT: f64 = 16_000.0;

/// The description with the flaw. `None` if nothing in it can be wrong in this way, or if the flaw is not one of these.
pub(super) fn contradicted(
    description: &Description,
    flaw: Flaw,
    random: &mut Random,
) -> Option<Description> {
    let mut wrong = description.clone();
    match flaw {
        Flaw::WrongAttribute => change_attribute(&mut wrong, random)?,
        Flaw::WrongCount => change_count(&mut wrong, random)?,
        Flaw::WrongPosition => change_position(&mut wrong, random)?,
        Flaw::SwappedSubjects => swap_subjects(&mut wrong)?,
        _ => return None,
    }
    Some(wrong)
}

/// Changes the size, pattern or color of one subject. No other subject has its shape, so none matches the new
/// description.
fn change_attribute(description: &mut Description, random: &mut Random) -> Option<()> {
    let options: Vec<(usize, Vec<Looks>)> = (description.subjects.iter().enumerate())
        .flat_map(|(index, stated)| {
            other_looks(&stated.subject.looks).into_iter().map(move |looks| (index, looks))
        })
        .collect();
    let (index, looks) = options.get(random.below(options.len().max(1) as u64) as usize)?;
    description.subjects[*index].subject.looks = pick(random, looks);
    Some(())
}

/// Looks that differ in one attribute, grouped by attribute. A missing word is no contradiction: captions do not
/// mention a medium size or the lack of a pattern.
fn other_looks(looks: &Looks) -> Vec<Vec<Looks>> {
    let Looks { size, pattern, color, shape } = *looks;
    let sizes = match size {
        SizeClass::Large => vec![SizeClass::Small],
        SizeClass::Medium => Vec::new(),
        SizeClass::Small => vec![SizeClass::Large],
    };
    let patterns = match pattern {
        Pattern::Uniform if shape.takes_pattern() => vec![Pattern::Striped, Pattern::Spotted],
        Pattern::Uniform => Vec::new(),
        Pattern::Striped => vec![Pattern::Spotted],
        Pattern::Spotted => vec![Pattern::Striped],
    };
    let mut colors: Vec<NamedColor> = shape.palette().to_vec();
    colors.retain(|other| {
        // The second color of a pattern is nearly black or white.
        let in_pattern = pattern != Pattern::Uniform && [BLACK, WHITE].contains(other);
        let distinct = squared_distance(other.color, color.color) > DISTINCT;
        distinct && !in_pattern && !detail_colors(shape).contains(other)
    });
    let options = [
        sizes.into_iter().map(|size| Looks { size, ..*looks }).collect::<Vec<_>>(),
        patterns.into_iter().map(|pattern| Looks { pattern, ..*looks }).collect(),
        colors.into_iter().map(|color| Looks { color, ..*looks }).collect(),
    ];
    options.into_iter().filter(|options| !options.is_empty()).collect()
}

/// Colors of a shape's smaller parts. With such a color, the changed caption could be taken as true.
fn detail_colors(shape: Shape) -> &'static [NamedColor] {
    match shape {
        Shape::House => &[RED, BROWN, GRAY, BLACK],
        Shape::Boat => &[WHITE, BROWN],
        Shape::Flower => &[YELLOW, ORANGE, GREEN],
        Shape::Car => &[BLACK, GRAY],
        Shape::Balloon => &[WHITE, GRAY],
        Shape::Apple => &[GREEN, BROWN],
        Shape::Butterfly => &[BROWN, BLACK],
        Shape::Bird => &[ORANGE, BROWN],
        _ => &[],
    }
}

/// Changes the number of the first subject to another one that occurs in scenes.
fn change_count(description: &mut Description, random: &mut Random) -> Option<()> {
    if description.subjects.len() > 2 {
        return None;
    }
    let first = &mut description.subjects.first_mut()?.subject;
    if !first.looks.shape.takes_group() || is_repeated(first, &description.setting) {
        return None;
    }
    let true_count = first.count;
    let counts: Vec<usize> = (1..=4).filter(|&count| count != true_count).collect();
    first.count = pick(random, &counts);
    // A group has neither a position nor a relation to another object.
    let Description { subjects, setting } = description;
    let subjects: Vec<Subject> = subjects.iter().map(|stated| stated.subject).collect();
    *description = Description::new(&subjects, *setting, false);
    Some(())
}

/// Whether the background contains more objects of this shape.
fn is_repeated(subject: &Subject, setting: &Setting) -> bool {
    match subject.looks.shape {
        Shape::Star => matches!(setting.kind, Kind::Landscape(_, Time::Night) | Kind::Sky(Time::Night)),
        Shape::Circle => matches!(setting.kind, Kind::Dots(..)),
        Shape::Square => matches!(setting.kind, Kind::Checks(..)),
        _ => false,
    }
}

/// Replaces one relation or position with the opposite.
fn change_position(description: &mut Description, random: &mut Random) -> Option<()> {
    let places: Vec<usize> = (0..description.subjects.len())
        .filter(|&index| {
            let stated = &description.subjects[index];
            stated.relation.is_some() || stated.position.is_some()
        })
        .collect();
    let index = places.get(random.below(places.len().max(1) as u64) as usize)?;
    let stated = &mut description.subjects[*index];
    stated.relation = stated.relation.map(Relation::opposite);
    stated.position = stated.position.map(|position| Position::opposite(position, &stated.subject));
    Some(())
}

/// Exchanges the first two subjects and keeps their relation.
fn swap_subjects(description: &mut Description) -> Option<()> {
    let [first, second, ..] = description.subjects.as_mut_slice() else { return None };
    second.relation?;
    std::mem::swap(&mut first.subject, &mut second.subject);
    Some(())
}
