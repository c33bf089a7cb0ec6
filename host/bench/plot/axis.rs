//! Where values lie on an axis, and its ticks.

use std::ops::Range;

/// How values are spread over an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// Evenly, from zero.
    Linear,
    /// By powers of two: sizes.
    Log2,
    /// By powers of ten: times.
    Log10,
}

impl Scale {
    /// A value's place; none for what a logarithm cannot show.
    pub(super) fn place(self, value: f64) -> Option<f64> {
        let place = match self {
            Self::Linear => value,
            Self::Log2 => value.log2(),
            Self::Log10 => value.log10(),
        };
        place.is_finite().then_some(place)
    }

    /// The value at a place.
    pub(super) fn value(self, place: f64) -> f64 {
        match self {
            Self::Linear => place,
            Self::Log2 => place.exp2(),
            Self::Log10 => 10f64.powf(place),
        }
    }
}

/// An axis over some values: its ends as places, and its ticks.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    pub(super) scale: Scale,
    pub(super) places: Range<f64>,
    /// Places too.
    pub(super) ticks: Vec<f64>,
}

impl Axis {
    /// What stands beside it, with its scale where distances are ratios.
    pub(super) fn described(&self, label: &str) -> String {
        if self.scale == Scale::Linear { label.to_owned() } else { format!("{label} (log)") }
    }

    /// Over all values that the scale can show; none if there are none.
    pub(super) fn over(scale: Scale, values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for place in values.into_iter().filter_map(|value| scale.place(value)) {
            (low, high) = (low.min(place), high.max(place));
        }
        if low > high {
            return None;
        }
        if scale == Scale::Linear {
            (low, high) = (low.min(0.0), high.max(0.0));
        }
        let span = if high > low { high - low } else { 1.0 };
        let margin = 0.05 * span;
        let start = if scale == Scale::Linear && low == 0.0 { 0.0 } else { low - margin };
        let places = start..high + margin;
        Some(Self { scale, ticks: ticks(scale, &places), places })
    }

    /// A tick's label.
    pub(super) fn label(&self, place: f64) -> String {
        let value = self.scale.value(place);
        let rounded = (value * 1e9).round() / 1e9;
        match self.scale {
            Scale::Log2 if value >= 1023.5 && (rounded / 1024.0).fract() == 0.0 => match rounded / 1024.0 {
                ki if ki >= 1024.0 && (ki / 1024.0).fract() == 0.0 => format!("{}Mi", ki / 1024.0),
                ki => format!("{ki}Ki"),
            },
            _ => format!("{rounded}"),
        }
    }
}

fn ticks(scale: Scale, places: &Range<f64>) -> Vec<f64> {
    let candidates: Vec<f64> = match scale {
        Scale::Linear => even(places, 8.0),
        // Every power of two, or every second, fourth … where that is too dense.
        Scale::Log2 => every((places.end - places.start) / 9.0, places),
        // Within a decade round numbers, closer together the higher they are.
        Scale::Log10 if places.end - places.start < 1.0 => {
            let values = scale.value(places.start)..scale.value(places.end);
            even(&values, 6.0).into_iter().map(f64::log10).collect()
        }
        // 1, 2, 5 in each decade; over many decades only their ends.
        Scale::Log10 if places.end - places.start <= 3.0 => {
            let decades = places.start.floor() as i32..=places.end.ceil() as i32;
            decades.flat_map(|d| [1f64, 2.0, 5.0].map(|step| f64::from(d) + step.log10())).collect()
        }
        Scale::Log10 => every((places.end - places.start) / 9.0, places),
    };
    // A tick that rounding puts a hair outside is inside.
    let slack = 1e-9 * (places.end - places.start);
    candidates.into_iter().filter(|t| (places.start - slack..=places.end + slack).contains(t)).collect()
}

/// Multiples of the least power of two that is at least `step` and 1.
fn every(step: f64, places: &Range<f64>) -> Vec<f64> {
    let step = step.max(1.0).log2().ceil().exp2();
    multiples(step, places)
}

/// Multiples of 1, 2 or 5 times a power of ten, about `count` of them.
fn even(places: &Range<f64>, count: f64) -> Vec<f64> {
    let rough = (places.end - places.start) / count;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|&step| step >= rough);
    multiples(step.unwrap_or(10.0 * power), places)
}

fn multiples(step: f64, places: &Range<f64>) -> Vec<f64> {
    let (first, last) = ((places.start / step).ceil() as i64, (places.end / step).floor() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, values: &[f64]) -> Vec<String> {
        let axis = Axis::over(scale, values.iter().copied()).unwrap();
        axis.ticks.iter().map(|&tick| axis.label(tick)).collect()
    }

    #[test]
    fn ticks_are_round_numbers_within_the_axis() {
        assert_eq!(labels(Scale::Linear, &[3.0, 4.7]), ["0", "1", "2", "3", "4"]);
        assert_eq!(labels(Scale::Linear, &[-30.0, 99.0]), ["-20", "0", "20", "40", "60", "80", "100"]);
        assert_eq!(labels(Scale::Log2, &[1.0, 64.0]), ["1", "2", "4", "8", "16", "32", "64"]);
        assert_eq!(labels(Scale::Log2, &[1024.0, (64 << 20) as f64])[..2], ["1Ki", "4Ki"]);
        assert_eq!(labels(Scale::Log2, &[1024.0, (64 << 20) as f64]).last().unwrap(), "64Mi");
        assert_eq!(labels(Scale::Log10, &[11_400.0, 15_700.0]), ["12000", "13000", "14000", "15000"]);
        assert_eq!(labels(Scale::Log10, &[0.9, 30.0]), ["1", "2", "5", "10", "20"]);
        assert_eq!(labels(Scale::Log10, &[1e-3, 1e3]).len(), 7);
    }

    #[test]
    fn a_single_value_has_an_axis_and_none_has_none() {
        let axis = Axis::over(Scale::Log2, [8.0]).unwrap();
        assert!(axis.places.start < 3.0 && 3.0 < axis.places.end && axis.ticks == [3.0], "{axis:?}");
        assert_eq!(Axis::over(Scale::Log10, [0.0, -1.0]), None);
        assert_eq!(Axis::over(Scale::Linear, []), None);
    }

    #[test]
    fn a_place_leads_back_to_its_value() {
        for scale in [Scale::Linear, Scale::Log2, Scale::Log10] {
            let value = scale.value(scale.place(28_672.0).unwrap());
            assert!((value / 28_672.0 - 1.0).abs() < 1e-12, "{scale:?}: {value}");
        }
    }
}
