//! What `--spd` takes.

use std::path::PathBuf;
use std::str::FromStr;

use super::{BlockPlan, Plan, PlanError};
use crate::model::{Config, TensorSource};

/// A short way to say which blocks drop their attention all-reduce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpdSpec {
    /// Every block synchronises twice: plain tensor parallelism.
    None,
    /// Every block drops.
    All,
    /// The last `K` blocks drop.
    Last(usize),
    /// A plan file.
    File(PathBuf),
}

impl FromStr for SpdSpec {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "none" => Ok(Self::None),
            "all" => Ok(Self::All),
            _ => match s.strip_prefix("last:") {
                Some(k) => match k.parse() {
                    Ok(k) => Ok(Self::Last(k)),
                    Err(_) => Err(format!("'{k}' is not a number of blocks; write last:K, such as last:15")),
                },
                None if s.ends_with(".json") => Ok(Self::File(s.into())),
                None => Err("expected none, all, last:K or the path of a plan that ends in .json".into()),
            },
        }
    }
}

impl SpdSpec {
    /// The plan for a model split over `tp` ranks; a plan file is checked against the model's own fingerprint.
    pub fn resolve(&self, config: &Config, source: &dyn TensorSource, tp: usize) -> Result<Plan, PlanError> {
        let n_layers = config.n_layers;
        let dropped = match self {
            Self::None => 0,
            Self::All => n_layers,
            &Self::Last(k) if k <= n_layers => k,
            &Self::Last(k) => return Err(PlanError::TooManyBlocks { k, n_layers }),
            Self::File(path) => return Plan::read(path, config, source, tp),
        };
        let block = |layer| BlockPlan { sync_attention: layer < n_layers - dropped, ..BlockPlan::default() };
        Ok(Plan::new(tp, (0..n_layers).map(block).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        assert_eq!("none".parse(), Ok(SpdSpec::None));
        assert_eq!("all".parse(), Ok(SpdSpec::All));
        assert_eq!("last:15".parse(), Ok(SpdSpec::Last(15)));
        assert_eq!("plans/a.json".parse(), Ok(SpdSpec::File("plans/a.json".into())));
        for bad in ["", "last", "last:", "last:-1", "last:x", "first:3", "plan.toml"] {
            assert!(bad.parse::<SpdSpec>().is_err(), "{bad}");
        }
    }
}
