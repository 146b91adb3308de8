//! Named colors.

use crate::engine::Random;

/// Red, green and blue, each 0 to 255.
pub(super) type Color = [f64; 3];

/// A color and its name in captions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct NamedColor {
    pub(super) name: &'static str,
    pub(super) color: Color,
}

const fn named(name: &'static str, color: Color) -> NamedColor {
    NamedColor { name, color }
}

pub(super) const RED: NamedColor = named("red", [214.0, 40.0, 40.0]);
pub(super) const ORANGE: NamedColor = named("orange", [242.0, 138.0, 36.0]);
pub(super) const YELLOW: NamedColor = named("yellow", [250.0, 214.0, 48.0]);
pub(super) const GREEN: NamedColor = named("green", [58.0, 158.0, 66.0]);
pub(super) const BLUE: NamedColor = named("blue", [42.0, 96.0, 210.0]);
pub(super) const PURPLE: NamedColor = named("purple", [128.0, 62.0, 166.0]);
pub(super) const PINK: NamedColor = named("pink", [245.0, 138.0, 182.0]);
pub(super) const BROWN: NamedColor = named("brown", [132.0, 84.0, 48.0]);
pub(super) const BLACK: NamedColor = named("black", [34.0, 34.0, 40.0]);
pub(super) const WHITE: NamedColor = named("white", [247.0, 247.0, 243.0]);
pub(super) const GRAY: NamedColor = named("grey", [142.0, 144.0, 150.0]);
pub(super) const TURQUOISE: NamedColor = named("turquoise", [46.0, 186.0, 180.0]);

/// All colors.
pub(super) const ALL: &[NamedColor] =
    &[RED, ORANGE, YELLOW, GREEN, BLUE, PURPLE, PINK, BROWN, BLACK, WHITE, GRAY, TURQUOISE];

/// Interpolates linearly between `from` and `to`.
pub(super) fn mix(from: Color, to: Color, amount: f64) -> Color {
    [0, 1, 2].map(|channel| from[channel] + (to[channel] - from[channel]) * amount)
}

/// Darkens by the share `amount`.
pub(super) fn darker(color: Color, amount: f64) -> Color {
    mix(color, [0.0, 0.0, 0.0], amount)
}

/// Lightens by the share `amount`.
pub(super) fn lighter(color: Color, amount: f64) -> Color {
    mix(color, [255.0, 255.0, 255.0], amount)
}

/// Squared distance between two colors.
pub(super) fn squared_distance(left: Color, right: Color) -> f64 {
    let [red, green, blue] = [0, 1, 2].map(|channel| left[channel] - right[channel]);
    red * red + green * green + blue * blue
}

/// Varies a color slightly; its name remains correct.
pub(super) fn varied(color: Color, random: &mut Random) -> Color {
    let brightness = between(random, 0.9, 1.06);
    color.map(|value| (value * brightness + between(random, -12.0, 12.0)).clamp(0.0, 255.0))
}

/// A uniform random value in [`low`, `high`).
pub(super) fn between(random: &mut Random, low: f64, high: f64) -> f64 {
    low + (high - low) * random.uniform()
}

/// A uniformly random element of `items`.
pub(super) fn pick<T: Copy>(random: &mut Random, items: &[T]) -> T {
    items[random.below(items.len() as u64) as usize]
}

/// `true` with the given probability.
pub(super) fn chance(random: &mut Random, probability: f64) -> bool {
    random.uniform() < probability
}
