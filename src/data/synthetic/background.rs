//! Backgrounds of scenes: landscapes, skies and patterns.

use super::color::{
    self, BLACK, BROWN, Color, NamedColor, WHITE, between, chance, darker, lighter, mix, pick, varied,
};
use super::raster::{Canvas, Contour, TURN, direction, ellipse, rectangle};
use super::shapes::{Habitat, Shape};
use crate::engine::Random;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Time {
    Day,
    Sunset,
    Night,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ground {
    Grass,
    Sand,
    Sea,
    Snow,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Landscape(Ground, Time),
    Sky(Time),
    Flat(NamedColor),
    Fade { from: NamedColor, to: NamedColor, across: bool },
    Stripes(NamedColor, NamedColor),
    Checks(NamedColor, NamedColor),
    Dots(NamedColor, NamedColor),
}

/// Where the objects of a landscape are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preposition {
    On,
    Over,
    In,
}

/// The words that captions use for a background.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Setting {
    pub(super) kind: Kind,
    pub(super) preposition: Preposition,
    pub(super) says_weather: bool,
}

/// A background: its contents, and where shapes may be placed on it.
pub(super) struct Background {
    kind: Kind,
    /// The lower edge of the sky, from 0 at the top to 1 at the bottom; `None` for a pattern.
    horizon: Option<f64>,
    says_weather: bool,
}

/// The vertical range for the center of a shape, as (lowest value, highest value).
pub(super) type Band = (f64, f64);

impl Background {
    /// Chooses a random background.
    pub(super) fn choose(random: &mut Random) -> Self {
        let time = if chance(random, 0.55) { Time::Day } else { pick(random, &[Time::Sunset, Time::Night]) };
        let first = pick(random, color::ALL);
        let second = loop {
            let second = pick(random, color::ALL);
            if color::squared_distance(first.color, second.color) > 8000.0 {
                break second;
            }
        };
        let kind = match random.below(20) {
            0..=3 => Kind::Landscape(Ground::Grass, time),
            4..=5 => Kind::Landscape(Ground::Sand, time),
            6..=8 => Kind::Landscape(Ground::Sea, time),
            9 => Kind::Landscape(Ground::Snow, time),
            10..=11 => Kind::Sky(time),
            12..=14 => Kind::Flat(first),
            15..=16 => Kind::Fade { from: first, to: second, across: chance(random, 0.5) },
            17 => Kind::Stripes(first, second),
            18 => Kind::Checks(first, second),
            _ => Kind::Dots(first, second),
        };
        let horizon = match kind {
            Kind::Landscape(..) => Some(between(random, 0.45, 0.68)),
            Kind::Sky(_) => Some(1.25),
            _ => None,
        };
        Self { kind, horizon, says_weather: chance(random, 0.5) }
    }

    /// Whether a shape may be part of this scene.
    pub(super) fn allows(&self, shape: Shape) -> bool {
        let time = match self.kind {
            Kind::Landscape(_, time) | Kind::Sky(time) => time,
            _ => return true,
        };
        match shape {
            Shape::Sun if time == Time::Night => return false,
            Shape::Moon if time == Time::Day => return false,
            _ => {}
        }
        match (shape.habitat(), self.kind) {
            (Habitat::Anywhere | Habitat::Sky, _) => true,
            (Habitat::Ground, Kind::Landscape(ground, _)) => ground != Ground::Sea,
            (Habitat::Water, Kind::Landscape(ground, _)) => ground == Ground::Sea,
            _ => false,
        }
    }

    /// The vertical range for the center of a shape with this radius; empty if the shape does not fit.
    pub(super) fn band(&self, shape: Shape, radius: f64) -> Band {
        let inside = (radius, 1.0 - radius);
        let Some(horizon) = self.horizon else { return inside };
        match shape.habitat() {
            Habitat::Anywhere => inside,
            Habitat::Sky => (radius, (horizon - 0.75 * radius).min(inside.1)),
            // The foot of the shape, one radius below its center, is on the ground.
            Habitat::Ground => ((horizon + 0.03 - 0.95 * radius).max(radius), inside.1),
            Habitat::Water if shape == Shape::Fish => (horizon + 0.6 * radius, inside.1),
            Habitat::Water => ((horizon + 0.04 - 0.8 * radius).max(radius), inside.1),
        }
    }

    /// The words that captions use for it. `flying` and `swimming` are whether every shape flies or swims.
    pub(super) fn setting(&self, flying: bool, swimming: bool) -> Setting {
        let preposition = if flying {
            Preposition::Over
        } else if swimming {
            Preposition::In
        } else {
            Preposition::On
        };
        let snow = matches!(self.kind, Kind::Landscape(Ground::Snow, _));
        Setting { kind: self.kind, preposition, says_weather: self.says_weather && !snow }
    }

    /// Paints the background over the whole canvas.
    pub(super) fn paint(&self, canvas: &mut Canvas, random: &mut Random) {
        match self.kind {
            Kind::Landscape(ground, time) => {
                let horizon = self.horizon.unwrap_or(0.6);
                paint_sky(canvas, time, ground == Ground::Snow, horizon, random);
                paint_ground(canvas, ground, time, horizon, random);
            }
            Kind::Sky(time) => paint_sky(canvas, time, false, 1.0, random),
            Kind::Flat(named) => {
                let color = softened(named, random);
                let edge = if chance(random, 0.5) { 0.0 } else { between(random, 0.05, 0.18) };
                let reach = between(random, 0.9, 1.3);
                canvas.cover(|x, y| {
                    let away = (x - 0.5) * (x - 0.5) + (y - 0.5) * (y - 0.5);
                    darker(color, (edge * away * 2.0 * reach).min(edge))
                });
            }
            Kind::Fade { from, to, across } => {
                let (from, to) = (softened(from, random), softened(to, random));
                canvas.cover(|x, y| mix(from, to, if across { x } else { y }));
            }
            Kind::Stripes(first, second) => {
                let (first, second) = (softened(first, random), softened(second, random));
                let slope = pick(random, &[0.0, 1.0, -1.0, 0.5]);
                let (along_x, period, start) =
                    (chance(random, 0.5), between(random, 0.14, 0.3), random.uniform());
                canvas.cover(|x, y| {
                    let along = if along_x { x + slope * y } else { y + slope * x };
                    let phase = along / period + start;
                    if phase - phase.floor() < 0.5 { first } else { second }
                });
            }
            Kind::Checks(first, second) => {
                let (first, second) = (softened(first, random), softened(second, random));
                let squares = pick(random, &[4.0, 5.0, 6.0, 8.0]);
                canvas.cover(|x, y| {
                    let square = (x * squares).floor() + (y * squares).floor();
                    if square % 2.0 == 0.0 { first } else { second }
                });
            }
            Kind::Dots(first, second) => {
                let (first, second) = (softened(first, random), softened(second, random));
                let (period, radius) = (between(random, 0.14, 0.24), between(random, 0.2, 0.32));
                canvas.cover(|x, y| {
                    let row = (y / period).floor();
                    let column = x / period + 0.5 * (row % 2.0);
                    let (across, down) = (column - column.floor() - 0.5, y / period - row - 0.5);
                    if across * across + down * down < radius * radius { second } else { first }
                });
            }
        }
    }
}

/// The color of a background: varied, and lighter if its name remains correct.
fn softened(named: NamedColor, random: &mut Random) -> Color {
    let color = varied(named.color, random);
    let softness = between(random, 0.0, 0.35);
    if named == BLACK || named == BROWN { color } else { lighter(color, softness) }
}

fn paint_sky(canvas: &mut Canvas, time: Time, pale: bool, horizon: f64, random: &mut Random) {
    let (top, bottom) = match time {
        Time::Day if pale => ([176.0, 200.0, 226.0], [226.0, 236.0, 246.0]),
        Time::Day => ([78.0, 150.0, 232.0], [190.0, 226.0, 250.0]),
        Time::Sunset => ([112.0, 84.0, 160.0], [252.0, 168.0, 84.0]),
        Time::Night => ([12.0, 16.0, 48.0], [36.0, 46.0, 98.0]),
    };
    let (top, bottom) = (varied(top, random), varied(bottom, random));
    canvas.cover(|_, y| mix(top, bottom, (y / horizon).min(1.0)));
    if time == Time::Night {
        for _ in 0..10 + random.below(18) {
            let (x, y) = (random.uniform(), random.uniform() * horizon);
            let radius = between(random, 0.004, 0.011);
            let light = between(random, 0.5, 1.0);
            canvas.fill(&[ellipse(x, y, radius, radius)], |_, _| [255.0, 252.0, 225.0], light);
        }
    }
}

fn paint_ground(canvas: &mut Canvas, ground: Ground, time: Time, horizon: f64, random: &mut Random) {
    let color = match ground {
        Ground::Grass => [92.0, 172.0, 74.0],
        Ground::Sand => [236.0, 208.0, 140.0],
        Ground::Sea => [40.0, 112.0, 186.0],
        Ground::Snow => [240.0, 245.0, 252.0],
    };
    let dim = match time {
        Time::Day => 0.0,
        Time::Sunset => 0.12,
        Time::Night => 0.45,
    };
    let near = darker(varied(color, random), dim);
    let far = if chance(random, 0.5) { darker(near, 0.14) } else { lighter(near, 0.16) };
    let shape: Contour = if ground == Ground::Sea || chance(random, 0.4) {
        rectangle(-0.1, horizon, 1.1, 1.1)
    } else {
        hill(horizon, between(random, 0.2, 0.8), between(random, 0.02, 0.07))
    };
    let paint = |_: f64, y: f64| mix(far, near, ((y - horizon) / (1.0 - horizon)).clamp(0.0, 1.0));
    canvas.fill(&[shape], paint, 1.0);
    let below = |random: &mut Random, margin: f64| between(random, horizon + margin, 1.0);
    match ground {
        Ground::Grass => {
            for _ in 0..24 + random.below(30) {
                let (x, y) = (random.uniform(), below(random, 0.07));
                let (height, lean) = (between(random, 0.03, 0.06), between(random, -0.02, 0.02));
                let blade = vec![[x - 0.008, y], [x + lean, y - height], [x + 0.008, y]];
                let tone = if chance(random, 0.5) { darker(near, 0.22) } else { lighter(near, 0.2) };
                canvas.fill(&[blade], |_, _| tone, 0.85);
            }
        }
        Ground::Sand => {
            for _ in 0..40 + random.below(50) {
                let (x, y, radius) = (random.uniform(), below(random, 0.06), between(random, 0.004, 0.009));
                let tone = if chance(random, 0.6) { darker(near, 0.2) } else { lighter(near, 0.4) };
                canvas.fill(&[ellipse(x, y, radius, radius)], |_, _| tone, 0.8);
            }
        }
        Ground::Sea => {
            for _ in 0..8 + random.below(10) {
                let (x, y) = (random.uniform(), below(random, 0.04));
                let length = between(random, 0.05, 0.14);
                let tone = if chance(random, 0.7) { lighter(near, 0.4) } else { darker(near, 0.2) };
                canvas.fill(&[ellipse(x, y, length, 0.009)], |_, _| tone, 0.75);
            }
        }
        Ground::Snow => {
            for _ in 0..5 + random.below(6) {
                let (x, y) = (random.uniform(), below(random, 0.08));
                let length = between(random, 0.06, 0.16);
                canvas.fill(&[ellipse(x, y, length, 0.014)], |_, _| darker(near, 0.09), 0.8);
            }
            if time != Time::Day || chance(random, 0.6) {
                for _ in 0..12 + random.below(16) {
                    let (x, y, radius) = (random.uniform(), random.uniform(), between(random, 0.007, 0.014));
                    canvas.fill(&[ellipse(x, y, radius, radius)], |_, _| WHITE.color, 0.9);
                }
            }
        }
    }
}

/// Ground whose top is an arc that rises `rise` above the horizon at `summit`.
fn hill(horizon: f64, summit: f64, rise: f64) -> Contour {
    let mut contour: Contour = (0..=TURN / 2)
        .step_by(3)
        .map(|step| {
            let [cos, sin] = direction(step + TURN / 2);
            [summit + 1.2 * cos, horizon + 0.02 + (rise + 0.02) * sin]
        })
        .collect();
    contour.extend([[2.4, horizon + 0.02], [2.4, 1.1], [-1.4, 1.1], [-1.4, horizon + 0.02]]);
    contour
}
