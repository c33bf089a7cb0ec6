//! Which blocks to drop: classes, orders and budgets, from what was measured of single blocks.

use serde::Serialize;

/// How much a block suffers (SPD paper, Section 4.2 and Algorithm 1), and so what is to be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Class {
    /// In-sensitive block.
    #[serde(rename = "ISB")]
    Insensitive,
    /// Sensitive block.
    #[serde(rename = "SB")]
    Sensitive,
    /// Extremely sensitive block.
    #[serde(rename = "ESB")]
    ExtremelySensitive,
}

impl Class {
    /// The paper's abbreviation.
    pub fn name(self) -> &'static str {
        match self {
            Self::Insensitive => "ISB",
            Self::Sensitive => "SB",
            Self::ExtremelySensitive => "ESB",
        }
    }

    /// What the paper does with such a block.
    pub fn action(self) -> &'static str {
        match self {
            Self::Insensitive => "drop",
            Self::Sensitive => "distil, then drop",
            Self::ExtremelySensitive => "group heads, distil, then drop",
        }
    }
}

/// Limits between the classes, as rises of perplexity relative to the model's own.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Thresholds {
    /// Up to here a block is in-sensitive.
    pub tau1: f64,
    /// Up to here it is sensitive.
    pub tau2: f64,
}

impl Default for Thresholds {
    /// The paper's 0.05 and 10 for LLaMA2-7B, whose perplexity is 5.47.
    fn default() -> Self {
        Self { tau1: 0.05 / 5.47, tau2: 10.0 / 5.47 }
    }
}

impl Thresholds {
    /// The class of a block that raises the perplexity by this part of the model's own.
    pub fn class(&self, relative_rise: f64) -> Class {
        if relative_rise <= self.tau1 {
            Class::Insensitive
        } else if relative_rise <= self.tau2 {
            Class::Sensitive
        } else {
            Class::ExtremelySensitive
        }
    }
}

/// Block numbers, the least rise first; equal ones in the model's order.
pub fn ascending(rises: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rises.len()).collect();
    order.sort_by(|&a, &b| rises[a].total_cmp(&rises[b]));
    order
}

/// How many blocks of `order` can drop before the sum of their rises exceeds `limit`. Blocks that drop together cost
/// more than that sum: it is a first guess.
pub fn predicted_count(order: &[usize], rises: &[f64], limit: f64) -> usize {
    let mut sum = 0.0;
    let within = |&&block: &&usize| {
        sum += rises[block];
        sum <= limit
    };
    order.iter().take_while(within).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_thresholds_scale_with_the_model() {
        let thresholds = Thresholds::default();
        // LLaMA2-7B: 0.05 and 10 absolute.
        let class = |absolute: f64, base: f64| thresholds.class(absolute / base).name();
        assert_eq!([0.0499, 0.0501, 9.99, 10.01].map(|rise| class(rise, 5.47)), ["ISB", "SB", "SB", "ESB"]);
        assert_eq!(class(0.2, 26.88), "ISB");
        assert_eq!(class(-0.1, 26.88), "ISB");
    }

    #[test]
    fn a_budget_is_filled_from_the_least_rise_on() {
        let rises = [3.0, -0.5, 0.5, 1.0];
        let order = ascending(&rises);
        assert_eq!(order, [1, 2, 3, 0]);
        let count = |limit| predicted_count(&order, &rises, limit);
        assert_eq!([-1.0, -0.5, 0.0, 0.9, 1.0, 3.9, 4.0].map(count), [0, 1, 2, 2, 3, 3, 4]);
        assert_eq!(ascending(&[1.0, 1.0, 0.0]), [2, 0, 1]);
    }
}
