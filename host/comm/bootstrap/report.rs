//! Who failed, and which failure the others follow from.

/// A rank's failure, as it or the system told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its error.
    pub cause: String,
    /// The rank whose silence or failure it is an answer to, if that is all it is.
    pub blames: Option<usize>,
    /// Whether the rank said so itself; otherwise its connection ended without a word.
    pub spoken: bool,
}

/// The reports of all ranks, as far as this one knows.
#[derive(Debug, Clone, Default)]
pub struct Reports {
    by_rank: Vec<Option<Report>>,
    first: Option<usize>,
}

impl Reports {
    pub(super) fn new(world: usize) -> Self {
        Self { by_rank: vec![None; world], first: None }
    }

    /// Keeps a rank's first report, and remembers whose came first of all.
    pub(super) fn add(&mut self, rank: usize, report: Report) {
        if self.by_rank[rank].is_none() {
            self.first = self.first.or(Some(rank));
            self.by_rank[rank] = Some(report);
        }
    }

    /// A rank's failure.
    pub fn of(&self, rank: usize) -> Option<&Report> {
        self.by_rank.get(rank)?.as_ref()
    }

    /// The failure heard of first: its rank and its error.
    pub fn first(&self) -> Option<(usize, &Report)> {
        self.first.and_then(|rank| Some((rank, self.of(rank)?)))
    }

    /// The failure that `rank`'s follows from: blame is followed to a rank that blames nobody, or that nobody has
    /// heard of. `None` if `rank` did not fail.
    pub fn root(&self, rank: usize) -> Option<(usize, &Report)> {
        let blamed = |rank: usize| self.of(rank)?.blames.filter(|&peer| self.of(peer).is_some());
        // As many steps as there are ranks lead to the end, or into a circle; of that the lowest rank counts.
        let mut end = rank;
        (0..self.by_rank.len()).for_each(|_| end = blamed(end).unwrap_or(end));
        let circle = std::iter::successors(Some(end), |&rank| blamed(rank)).take(self.by_rank.len());
        let root = circle.min().unwrap_or(end);
        self.of(root).map(|report| (root, report))
    }

    /// Whether `rank` has to give up for the failures of others. Those that only follow from its own silence are no
    /// reason: it may itself be waiting for the rank that is at fault, and says so when its time is up.
    pub fn stop(&self, rank: usize) -> bool {
        let follows = |root: Option<(usize, &Report)>| root.is_some_and(|(_, it)| it.blames == Some(rank));
        (0..self.by_rank.len()).any(|other| self.of(other).is_some() && !follows(self.root(other)))
    }

    /// The rank that is to tell people, so that they are told once: who failed first in the chain, if it can speak,
    /// else the lowest one that can. Of several that have the same error, or wait for the same silent rank, the lowest.
    pub fn speaker(&self, rank: usize) -> Option<usize> {
        let (_, root) = self.root(rank)?;
        let alike = |other: &Report| match root.blames {
            _ if !root.spoken => true,
            None => other.cause == root.cause,
            Some(_) => other.blames == root.blames,
        };
        let speaks = |rank: &usize| self.of(*rank).is_some_and(|other| other.spoken && alike(other));
        (0..self.by_rank.len()).find(speaks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reports(list: &[(usize, Option<usize>, bool)]) -> Reports {
        let mut reports = Reports::new(4);
        for &(rank, blames, spoken) in list {
            reports.add(rank, Report { cause: format!("cause of {rank}"), blames, spoken });
        }
        reports
    }

    #[test]
    fn blame_is_followed_to_its_end() {
        // 0 hears of 1, 1 waits for 2, 2 has an error of its own.
        let own = reports(&[(0, Some(1), true), (1, Some(2), true), (2, None, true)]);
        assert_eq!(own.first().unwrap().0, 0);
        assert_eq!((own.root(0).unwrap().0, own.speaker(0)), (2, Some(2)));
        assert!(own.root(3).is_none() && own.speaker(3).is_none());
        // 2 was killed: the lowest that lives tells.
        let killed = reports(&[(2, None, false), (1, Some(2), true), (3, Some(1), true)]);
        assert_eq!((killed.root(3).unwrap().0, killed.speaker(3)), (2, Some(1)));
        // 3 is stopped, 1 and 2 wait for it: one tells.
        let stopped = reports(&[(2, Some(3), true), (1, Some(3), true), (0, Some(2), true)]);
        assert_eq!([0, 1, 2].map(|rank| stopped.speaker(rank)), [Some(1); 3]);
    }

    #[test]
    fn an_error_of_all_is_told_once() {
        let mut reports = Reports::new(3);
        for rank in [2, 0, 1] {
            reports.add(rank, Report { cause: "no such model".into(), blames: None, spoken: true });
        }
        assert_eq!([0, 1, 2].map(|rank| reports.speaker(rank)), [Some(0); 3]);
    }

    #[test]
    fn blame_of_a_rank_does_not_stop_it() {
        // 0 waits for 1, which waits for the stopped 3; 2 hears of 0.
        let waited = reports(&[(0, Some(1), true), (2, Some(0), true)]);
        assert_eq!([1, 3].map(|rank| waited.stop(rank)), [false, true]);
        // A failure of its own kind does, whoever told it first.
        let mut broken = waited;
        broken.add(3, Report { cause: "the disk is full".into(), blames: None, spoken: true });
        assert!(broken.stop(1) && !reports(&[]).stop(1));
    }

    #[test]
    fn mutual_blame_ends() {
        let mutual = reports(&[(0, Some(1), true), (1, Some(0), true)]);
        assert_eq!([0, 1].map(|rank| mutual.speaker(rank)), [Some(0); 2]);
    }

    #[test]
    fn the_first_report_of_a_rank_stays() {
        let mut reports = reports(&[(1, None, true)]);
        reports.add(1, Report { cause: "later".into(), blames: None, spoken: false });
        assert_eq!(reports.of(1).unwrap().cause, "cause of 1");
    }
}
