//! Ranks in a message.

use std::fmt;

/// So many runs of ranks are told one by one.
const SHOWN: usize = 8;

/// Ascending ranks as people read them, `rank 3` or `ranks 1, 4-6`, and of very many the first ones and a number.
pub(super) struct RankList<'a>(pub(super) &'a [usize]);

impl fmt::Display for RankList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.len() == 1 { "rank " } else { "ranks " })?;
        let mut left = self.0.len();
        for (at, run) in self.0.chunk_by(|a, b| a + 1 == *b).enumerate() {
            if at == SHOWN {
                return write!(f, " and {left} more");
            }
            left -= run.len();
            f.write_str(if at > 0 { ", " } else { "" })?;
            match run {
                [first, .., last] => write!(f, "{first}-{last}")?,
                _ => write!(f, "{}", run[0])?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_joined_and_the_end_is_counted() {
        let text = |ranks: &[usize]| RankList(ranks).to_string();
        assert_eq!(text(&[3]), "rank 3");
        assert_eq!(text(&[1, 3]), "ranks 1, 3");
        assert_eq!(text(&[1, 2, 4, 5, 6, 9]), "ranks 1-2, 4-6, 9");
        assert_eq!(text(&(1..100_000).collect::<Vec<_>>()), "ranks 1-99999");
        let odd: Vec<usize> = (0..100).map(|i| 2 * i + 1).collect();
        assert_eq!(text(&odd), "ranks 1, 3, 5, 7, 9, 11, 13, 15 and 92 more");
    }
}
