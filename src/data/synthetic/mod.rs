//! Synthetic scenes with true captions: a built-in data set, so that the engine can be tried without a download.
//!
//! A scene is a background (a landscape, a sky, a pattern) with one to four objects, and a caption with their sizes,
//! colors, shapes and positions. A scene depends only on the seed and its index, and is bit-identical on every
//! machine.

mod background;
mod color;
mod contradiction;
mod data_set;
mod description;
mod language;
mod raster;
mod shapes;

pub use data_set::{DataSet, DataSetSettings, write_data_set, write_data_set_until};

use background::Background;
use color::{
    BLACK, Color, NamedColor, WHITE, between, chance, darker, lighter, mix, pick, squared_distance, varied,
};
use description::{Description, Looks, Pattern, SizeClass, Subject};
use raster::{Canvas, Contour, Point, outline};
use shapes::{Habitat, Paint, Shape};

use crate::{
    data::corruption::Flaw,
    engine::{Purpose, Random},
};

/// First stream index under [`Purpose::Draw`] for captions that contradict the scene, and for translations.
const MISDESCRIBE: u64 = 6 << 48;

/// A generated image and its caption.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// The image, `[side, side, 3]` bytes.
    pub rgb: Vec<u8>,
    /// A description of the image in one English phrase.
    pub caption: String,
    /// The content of the caption.
    description: Description,
}

impl Scene {
    /// The caption with a flaw that [needs the scene](Flaw::needs_scene). `None` for other flaws, or if nothing in the
    /// scene can be wrong in this way. Deterministic in (`seed`, `index`).
    pub fn misdescribed(&self, flaw: Flaw, seed: u64, index: u64) -> Option<String> {
        misdescribed(&self.description, flaw, seed, index)
    }
}

/// See [`Scene::misdescribed`].
fn misdescribed(description: &Description, flaw: Flaw, seed: u64, index: u64) -> Option<String> {
    let mut random = Random::new(seed, Purpose::Draw, MISDESCRIBE + index);
    if flaw == Flaw::TranslatedCaption {
        return Some(language::translated(description, &mut random));
    }
    Some(language::english(&contradiction::contradicted(description, flaw, &mut random)?))
}

/// A size class, and the range of the radius as a share of the image side.
struct Size {
    class: SizeClass,
    radius: (f64, f64),
}

const LARGE: Size = Size { class: SizeClass::Large, radius: (0.26, 0.34) };
const MEDIUM: Size = Size { class: SizeClass::Medium, radius: (0.165, 0.21) };
const SMALL: Size = Size { class: SizeClass::Small, radius: (0.1, 0.13) };

/// An object with its position and appearance.
struct Thing {
    shape: Shape,
    middle: Point,
    radius: f64,
    paint: Paint,
    color: Color,
    outline: Option<Color>,
    mirrored: bool,
    /// Tangent of half the tilt angle.
    lean: f64,
}

/// Generates the scene of (`seed`, `index`) as an image of `side`×`side` pixels.
///
/// The caption does not depend on `side`. Objects are distinguishable from about 32 pixels.
pub fn draw_scene(seed: u64, index: u64, side: usize) -> Scene {
    let mut random = Random::new(seed, Purpose::Draw, index);
    let mut canvas = Canvas::new(side);
    let background = Background::choose(&mut random);
    background.paint(&mut canvas, &mut random);
    let outlined = chance(&mut random, 0.5);
    let (mut things, mut named) = (Vec::new(), Vec::new());
    if chance(&mut random, 0.15) {
        add_group(&background, &canvas, outlined, &mut random, &mut things, &mut named);
    }
    let target = if named.is_empty() { [1, 1, 1, 2, 2, 2, 3, 3, 4][random.below(9) as usize] } else { 2 };
    let singles = if named.is_empty() || chance(&mut random, 0.5) { target } else { named.len() };
    for _ in 0..20 {
        if named.len() >= singles {
            break;
        }
        let shape = pick(&mut random, shapes::ALL);
        if !background.allows(shape) || things.iter().any(|thing: &Thing| thing.shape == shape) {
            continue;
        }
        let sizes: &[Size] = match random.below(if singles == 1 { 6 } else { 8 }) {
            0..=1 => &[LARGE, MEDIUM, SMALL],
            2..=4 => &[MEDIUM, SMALL],
            _ => &[SMALL],
        };
        if let Some((size, radius, middle)) =
            sizes.iter().find_map(|size| find_position(shape, size, &background, &things, &mut random))
        {
            let (thing, looks) = dress(shape, size, radius, middle, &canvas, outlined, &mut random);
            named.push(Subject { looks, count: 1, middle });
            things.push(thing);
        }
    }
    // Objects lower in a landscape are nearer and cover those behind them.
    let mut order: Vec<usize> = (0..things.len()).collect();
    let foot = |thing: &Thing| {
        thing.middle[1] + thing.radius - if thing.shape == Shape::Mountain { 1.0 } else { 0.0 }
    };
    order.sort_by(|&left, &right| foot(&things[left]).total_cmp(&foot(&things[right])));
    for index in order {
        draw(&things[index], &mut canvas, &mut random);
    }
    let all = |habitat| things.iter().all(|thing| thing.shape.habitat() == habitat);
    let swimming = things.iter().all(|thing| thing.shape == Shape::Fish);
    let setting = background.setting(all(Habitat::Sky), swimming);
    let description = Description::new(&named, setting, chance(&mut random, 0.6));
    Scene { rgb: canvas.into_rgb(), caption: language::english(&description), description }
}

/// Adds two to four similar objects, or none if they do not fit.
fn add_group(
    background: &Background,
    canvas: &Canvas,
    outlined: bool,
    random: &mut Random,
    things: &mut Vec<Thing>,
    named: &mut Vec<Subject>,
) {
    let count = 2 + random.below(3) as usize;
    let shape = loop {
        let shape = pick(random, shapes::ALL);
        if background.allows(shape) && shape.takes_group() {
            break shape;
        }
    };
    let size = if count == 2 && chance(random, 0.5) { MEDIUM } else { SMALL };
    let mut group: Vec<Thing> = Vec::new();
    let mut common = None;
    for _ in 0..count {
        let Some((size, radius, middle)) = find_position(shape, &size, background, &group, random) else {
            return;
        };
        let (thing, looks) = dress(shape, size, radius, middle, canvas, outlined, random);
        match group.first() {
            None => {
                common = Some(looks);
                group.push(thing);
            }
            Some(first) => {
                let (paint, color, outline) = (first.paint, first.color, first.outline);
                group.push(Thing { paint, color, outline, ..thing });
            }
        }
    }
    let mean = |axis: usize| group.iter().map(|thing| thing.middle[axis]).sum::<f64>() / count as f64;
    let middle = [mean(0), mean(1)];
    named.extend(common.map(|looks| Subject { looks, count, middle }));
    things.append(&mut group);
}

/// Finds a position for an object of this size that does not overlap others, if there is one.
fn find_position<'size>(
    shape: Shape,
    size: &'size Size,
    background: &Background,
    things: &[Thing],
    random: &mut Random,
) -> Option<(&'size Size, f64, Point)> {
    for _ in 0..40 {
        let radius = between(random, size.radius.0, size.radius.1);
        let (top, bottom) = background.band(shape, radius);
        let (across, down) = (random.uniform(), random.uniform());
        if top > bottom {
            continue;
        }
        let middle = [radius + (1.0 - 2.0 * radius) * across, top + (bottom - top) * down];
        let clear = things.iter().all(|thing| {
            let [x, y] = [middle[0] - thing.middle[0], middle[1] - thing.middle[1]];
            let distance = 0.95 * (radius + thing.radius);
            x * x + y * y >= distance * distance
        });
        if clear {
            return Some((size, radius, middle));
        }
    }
    None
}

/// Chooses color, pattern and outline of an object.
fn dress(
    shape: Shape,
    size: &Size,
    radius: f64,
    middle: Point,
    canvas: &Canvas,
    outlined: bool,
    random: &mut Random,
) -> (Thing, Looks) {
    let behind = canvas.mean_around(middle[0], middle[1], radius);
    let mut named: NamedColor = pick(random, shape.palette());
    let mut color = varied(named.color, random);
    let stands_out = |color: Color| squared_distance(color, behind) > 7000.0;
    for _ in 0..12 {
        if stands_out(color) {
            break;
        }
        named = pick(random, shape.palette());
        color = varied(named.color, random);
    }
    let dark_behind = behind[0] + behind[1] + behind[2] < 240.0;
    let line = if dark_behind { lighter(color, 0.75) } else { darker(mix(color, BLACK.color, 0.5), 0.45) };
    let outline = (outlined || !stands_out(color)).then_some(line);
    let contrast = if squared_distance(color, WHITE.color) < 30_000.0 { BLACK } else { WHITE };
    let second = varied(mix(color, contrast.color, 0.75), random);
    let (paint, pattern) = match random.below(10) {
        0 if shape.takes_pattern() => {
            let (width, slope) = (between(random, 0.2, 0.32), pick(random, &[0.0, 0.6, -0.6, 20.0]));
            // A steep slope makes horizontal bands, whose width is then measured vertically.
            let width = if slope > 10.0 { width * slope } else { width };
            (Paint::Striped { first: color, second, width, slope }, Pattern::Striped)
        }
        1 if shape.takes_pattern() => {
            (Paint::Spotted { first: color, second, period: between(random, 0.4, 0.55) }, Pattern::Spotted)
        }
        2..=5 => {
            let (light, dark) = (lighter(color, between(random, 0.1, 0.28)), darker(color, 0.2));
            (Paint::Fade { from: light, to: dark, across: chance(random, 0.4) }, Pattern::Uniform)
        }
        _ => (Paint::Solid(color), Pattern::Uniform),
    };
    let lean = if shape.may_lean() && chance(random, 0.5) { between(random, -0.2, 0.2) } else { 0.0 };
    let thing = Thing { shape, middle, radius, paint, color, outline, mirrored: chance(random, 0.5), lean };
    (thing, Looks { size: size.class, pattern, color: named, shape })
}

/// Draws an object, part by part.
fn draw(thing: &Thing, canvas: &mut Canvas, random: &mut Random) {
    // Cosine and sine from the tangent of half the angle, without the platform's sin and cos.
    let scale = 1.0 + thing.lean * thing.lean;
    let (cos, sin) = ((1.0 - thing.lean * thing.lean) / scale, 2.0 * thing.lean / scale);
    let mirror = if thing.mirrored { -1.0 } else { 1.0 };
    let onto_canvas = |[x, y]: Point| {
        let x = x * mirror;
        [
            thing.middle[0] + thing.radius * (x * cos - y * sin),
            thing.middle[1] + thing.radius * (x * sin + y * cos),
        ]
    };
    let from_canvas = |x: f64, y: f64| {
        let (x, y) = ((x - thing.middle[0]) / thing.radius, (y - thing.middle[1]) / thing.radius);
        [(x * cos + y * sin) * mirror, y * cos - x * sin]
    };
    for part in thing.shape.parts(thing.paint, thing.color, random) {
        let contours: Vec<Contour> =
            part.contours.iter().map(|contour| contour.iter().copied().map(onto_canvas).collect()).collect();
        if let Some(line) = thing.outline {
            canvas.fill(&outline(&contours, 0.024), |_, _| line, 1.0);
        }
        let paint = |x: f64, y: f64| {
            let [x, y] = from_canvas(x, y);
            part.paint.at(x, y)
        };
        canvas.fill(&contours, paint, 1.0);
    }
}
