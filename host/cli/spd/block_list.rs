//! Block numbers as written on the command line.

use std::ops::RangeInclusive;

use anyhow::Context;

/// Ranges of block numbers: `3,7-9`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct BlockList(Vec<RangeInclusive<usize>>);

impl BlockList {
    /// The blocks' numbers, each below `n_layers`.
    pub(super) fn within(&self, n_layers: usize) -> anyhow::Result<Vec<usize>> {
        let mut blocks = Vec::new();
        for range in &self.0 {
            let (last, named) = (n_layers - 1, *range.end());
            let range = (named <= last).then_some(range.clone());
            blocks.extend(
                range.with_context(|| {
                    format!("there is no block {named}: this model has blocks 0 to {last}")
                })?,
            );
        }
        blocks.sort_unstable();
        blocks.dedup();
        Ok(blocks)
    }
}

impl std::str::FromStr for BlockList {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let number = |n: &str| {
            let wrong = |_| format!("'{n}' is not a block number; write numbers and ranges, such as 3,7-9");
            n.trim().parse::<usize>().map_err(wrong)
        };
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("the range {first}-{last} is empty; write the smaller number first"));
            }
            Ok(first..=last)
        };
        s.split(',').map(range).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_lists() {
        let blocks = |s: &str| s.parse::<BlockList>().unwrap().within(10);
        assert_eq!(blocks("3,7-9,8").unwrap(), [3, 7, 8, 9]);
        assert!(blocks("0-18446744073709551615").unwrap_err().to_string().contains("no block 1844674407"));
        assert!(blocks("10").unwrap_err().to_string().contains("blocks 0 to 9"));
        for bad in ["", "a", "1-", "1,,2", "3-2", "-1", "1-2-3"] {
            assert!(bad.parse::<BlockList>().is_err(), "{bad}");
        }
    }
}
