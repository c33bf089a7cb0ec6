//! What every back end does with a batch first: refuse what cannot be computed, and cut it into passes.

use super::{Batch, LogitRows, RunError, Span};
use crate::model::Config;

/// A piece of a batch that fits one pass, and which of its rows of logits the whole batch asked for.
pub(crate) struct Chunk {
    pub(crate) batch: Batch,
    /// One entry per row that `batch.logits` selects.
    pub(crate) keep_logits: Vec<bool>,
}

impl Batch {
    /// Refuses what no rank could compute, before any rank sees it. `lengths` are the sequences' present ones.
    pub(crate) fn check(&self, config: &Config, lengths: &[usize]) -> Result<(), RunError> {
        if self.spans.is_empty() || self.spans.iter().any(|s| s.tokens.is_empty()) {
            return Err(RunError::BadCall("a batch needs at least one span and a span at least one token"));
        }
        for (i, span) in self.spans.iter().enumerate() {
            if self.spans[..i].iter().any(|s| s.sequence == span.sequence) {
                return Err(RunError::BadCall("a sequence is named twice"));
            }
            let needed = lengths.get(span.sequence).copied().unwrap_or(0) + span.tokens.len();
            if needed > config.context {
                let context = config.context;
                return Err(RunError::ContextExceeded { sequence: span.sequence, needed, context });
            }
            if let Some(&token) = span.tokens.iter().find(|&&t| t as usize >= config.vocab) {
                return Err(RunError::TokenOutOfRange { token, vocab: config.vocab });
            }
        }
        Ok(())
    }

    /// Cuts the batch into passes of at most `max_rows` tokens, in order.
    pub(crate) fn chunks(&self, max_rows: usize) -> Vec<Chunk> {
        let empty = || Chunk { batch: Batch { spans: Vec::new(), ..*self }, keep_logits: Vec::new() };
        let mut chunks = vec![empty()];
        let mut room = max_rows;
        for span in &self.spans {
            let mut rest = span.tokens.as_slice();
            while !rest.is_empty() {
                if room == 0 {
                    chunks.push(empty());
                    room = max_rows;
                }
                let (tokens, behind) = rest.split_at(room.min(rest.len()));
                (rest, room) = (behind, room - tokens.len());
                let chunk = chunks.last_mut().expect("never empty");
                chunk.batch.spans.push(Span { sequence: span.sequence, tokens: tokens.to_vec() });
                match self.logits {
                    LogitRows::All => chunk.keep_logits.extend(tokens.iter().map(|_| true)),
                    LogitRows::Last => chunk.keep_logits.push(rest.is_empty()),
                }
            }
        }
        chunks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(lengths: &[usize], logits: LogitRows) -> Batch {
        let spans = lengths.iter().enumerate().map(|(sequence, &n)| Span { sequence, tokens: vec![1; n] });
        Batch { spans: spans.collect(), logits, hidden_states: false }
    }

    #[test]
    fn chunks_are_full_and_keep_the_rows_that_were_asked_for() {
        let cut = |logits| {
            let chunks = batch(&[3, 1, 6], logits).chunks(4);
            let shape =
                |c: &Chunk| c.batch.spans.iter().map(|s| (s.sequence, s.tokens.len())).collect::<Vec<_>>();
            (
                chunks.iter().map(shape).collect::<Vec<_>>(),
                chunks.into_iter().map(|c| c.keep_logits).collect::<Vec<_>>(),
            )
        };
        let (shapes, keep) = cut(LogitRows::Last);
        assert_eq!(shapes, [vec![(0, 3), (1, 1)], vec![(2, 4)], vec![(2, 2)]]);
        assert_eq!(keep, [vec![true, true], vec![false], vec![true]]);
        assert_eq!(cut(LogitRows::All).1, [vec![true; 4], vec![true; 4], vec![true; 2]]);
    }

    #[test]
    fn what_cannot_be_computed_is_refused() {
        let config = crate::model::shapes::named("tiny").unwrap();
        let check = |batch: &Batch, lengths: &[usize]| batch.check(&config, lengths).unwrap_err().to_string();
        assert!(check(&batch(&[], LogitRows::Last), &[]).contains("at least one span"));
        assert!(check(&batch(&[1, 0], LogitRows::Last), &[]).contains("at least one token"));
        assert!(
            check(&batch(&[1, 2], LogitRows::Last), &[0, 1023]).contains("sequence 1 would hold 1025 tokens")
        );
        let mut twice = batch(&[1, 1], LogitRows::Last);
        twice.spans[1].sequence = 0;
        assert!(check(&twice, &[]).contains("twice"));
        twice.spans[1] = Span { sequence: 1, tokens: vec![512] };
        assert!(check(&twice, &[]).contains("token 512 is outside"));
    }
}
