//! From a sensitivity file and a budget to blocks.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::cost::CostArgs;
use crate::cli::layout::at_least;
use crate::cli::session::progress_bar;
use crate::model::Config;
use crate::runner::Runner;
use crate::spd::{
    Calibration, Class, Greedy, Meter, Metric, Ranking, Score, Sensitivity, Thresholds, ascending, greedy,
    longest_within, predicted_count,
};

#[derive(clap::Args)]
pub(super) struct BudgetArgs {
    /// What `fewsync spd sensitivity` wrote for this model and number of ranks
    #[arg(long, value_name = "FILE.json", conflicts_with = "blocks")]
    sensitivity: Option<PathBuf>,
    /// Which measurement orders the blocks
    #[arg(long, value_enum, default_value_t = RankingArg::Single)]
    ranking: RankingArg,
    /// What the order keeps low [default: perplexity, or KL with --max-kl]
    #[arg(long, value_enum)]
    by: Option<MetricArg>,
    /// Drop this many blocks
    #[arg(long, value_name = "N", group = "budget", conflicts_with = "blocks", value_parser = at_least::<0>, allow_negative_numbers = true)]
    count: Option<usize>,
    /// Let the perplexity rise by this much of the model's own, such as 1%
    #[arg(long, value_name = "P%", group = "budget", conflicts_with = "blocks", value_parser = percent)]
    max_ppl_rise: Option<f64>,
    /// Let the KL divergence from the synchronised model reach this many nats per token
    #[arg(long, value_name = "X", group = "budget", conflicts_with = "blocks", value_parser = positive)]
    max_kl: Option<f64>,
    /// Drop as few blocks as save this many µs of every decode step
    #[arg(long, value_name = "US", group = "budget", conflicts_with = "blocks", value_parser = positive)]
    min_saving_us: Option<f64>,
    /// Measure candidates again before every choice
    #[arg(long, conflicts_with = "blocks")]
    pub(super) greedy: bool,
    /// Most candidates that --greedy measures for one choice
    #[arg(long, value_name = "K", default_value_t = 4, value_parser = at_least::<1>)]
    candidates: usize,
    /// Rise of the perplexity up to which a block is in-sensitive (ISB) [default: 0.91%]
    #[arg(long, value_name = "P%", value_parser = percent)]
    tau1: Option<f64>,
    /// Rise of the perplexity up to which a block is sensitive (SB), extremely beyond (ESB) [default: 183%]
    #[arg(long, value_name = "P%", value_parser = percent)]
    tau2: Option<f64>,
    #[command(flatten)]
    cost: CostArgs,
}

#[derive(ValueEnum, Clone, Copy)]
pub(super) enum RankingArg {
    /// The block drops alone
    Single,
    /// It drops behind synchronised blocks, and so do all behind it
    Cumulative,
}

#[derive(ValueEnum, Clone, Copy)]
pub(super) enum MetricArg {
    Perplexity,
    Kl,
}

impl From<RankingArg> for Ranking {
    fn from(arg: RankingArg) -> Self {
        match arg {
            RankingArg::Single => Self::Single,
            RankingArg::Cumulative => Self::Cumulative,
        }
    }
}

impl From<MetricArg> for Metric {
    fn from(arg: MetricArg) -> Self {
        match arg {
            MetricArg::Perplexity => Self::Perplexity,
            MetricArg::Kl => Self::Kl,
        }
    }
}

/// A part of one from `5%`.
fn percent(s: &str) -> Result<f64, String> {
    let number = s.strip_suffix('%').unwrap_or(s).trim().parse::<f64>().ok();
    let number = number.filter(|p| *p >= 0.0 && p.is_finite());
    number.map(|p| p / 100.0).ok_or_else(|| "expected a percentage of at least 0, such as 1%".into())
}

pub(super) fn positive(s: &str) -> Result<f64, String> {
    let number = s.parse::<f64>().ok().filter(|x| *x > 0.0 && x.is_finite());
    number.ok_or_else(|| "expected a number above 0".into())
}

impl BudgetArgs {
    /// Reads and checks the sensitivity file, if one is named.
    pub(super) fn sensitivity(
        &self,
        model: &str,
        tp: usize,
        n_layers: usize,
    ) -> anyhow::Result<Option<Sensitivity>> {
        let path = self.sensitivity.as_ref();
        Ok(path.map(|path| Sensitivity::read(path, model, tp, n_layers)).transpose()?)
    }

    /// µs of every decode step that `dropped` all-reduces take, where their time is known.
    pub(super) fn saving_us(
        &self,
        config: &Config,
        tp: usize,
        dropped: usize,
    ) -> anyhow::Result<Option<f64>> {
        Ok(self.cost.all_reduce_us(config, tp)?.map(|us| us * dropped as f64))
    }

    /// The budget in numbers, against what was measured.
    pub(super) fn resolve(&self, config: &Config, sensitivity: &Sensitivity) -> anyhow::Result<Budget> {
        let by_budget = if self.max_kl.is_some() { Metric::Kl } else { Metric::Perplexity };
        let metric = self.by.map_or(by_budget, Metric::from);
        ensure!(
            self.max_kl.is_none() || metric == Metric::Kl,
            "--max-kl limits the KL divergence: leave out --by perplexity"
        );
        ensure!(
            self.max_ppl_rise.is_none() || metric == Metric::Perplexity,
            "--max-ppl-rise limits the perplexity: leave out --by kl"
        );
        let ranking = self.ranking.into();
        let base = sensitivity.synchronised()?;
        let rises = sensitivity.rises(ranking, metric)?;
        let relative = sensitivity.rises(ranking, Metric::Perplexity)?;
        let relative: Vec<f64> = relative.iter().map(|rise| rise / base.perplexity).collect();
        let n_layers = rises.len();
        let mut thresholds = Thresholds::default();
        thresholds.tau1 = self.tau1.unwrap_or(thresholds.tau1);
        thresholds.tau2 = self.tau2.unwrap_or(thresholds.tau2);
        ensure!(
            thresholds.tau1 <= thresholds.tau2,
            "--tau1 {}% is above --tau2 {}%: blocks up to the first are in-sensitive, up to the second sensitive",
            100.0 * thresholds.tau1,
            100.0 * thresholds.tau2
        );
        let count = match (self.count, self.min_saving_us) {
            (Some(count), _) => {
                ensure!(
                    count <= n_layers,
                    "--count {count} asks for more blocks than the model's {n_layers}"
                );
                count
            }
            (None, Some(least)) => {
                let each = self.cost.all_reduce_us(config, sensitivity.tp)?.context(
                    "--min-saving-us needs the time of an all-reduce: give --allreduce-us, or --alpha-us and --beta-gbs",
                )?;
                let count = (least / each).ceil() as usize;
                ensure!(
                    count <= n_layers,
                    "all {n_layers} blocks save {:.1} µs of a decode step, less than the {least} asked for",
                    each * n_layers as f64
                );
                count
            }
            (None, None) => n_layers,
        };
        let rise = match (self.max_ppl_rise, self.max_kl) {
            (Some(part), _) => Some(part * base.perplexity),
            (None, Some(kl)) => Some(kl),
            (None, None) => None,
        };
        if rise.is_none() && self.count.is_none() && self.min_saving_us.is_none() {
            bail!("a budget is missing: give --count, --max-ppl-rise, --max-kl or --min-saving-us");
        }
        let classes = relative.iter().map(|&rise| thresholds.class(rise)).collect();
        let search = self.greedy.then_some(self.candidates);
        Ok(Budget { metric, count, rise, base, rises, relative, classes, search })
    }
}

/// A budget and what it is spent on.
pub(super) struct Budget {
    metric: Metric,
    count: usize,
    /// Most that the metric may rise, absolute.
    rise: Option<f64>,
    base: Score,
    rises: Vec<f64>,
    /// Rises of perplexity relative to the model's own.
    relative: Vec<f64>,
    classes: Vec<Class>,
    /// Greedy, with so many candidates.
    search: Option<usize>,
}

impl Budget {
    /// Blocks by the sum of their rises.
    pub(super) fn predicted(self) -> Chosen {
        let order = ascending(&self.rises);
        let limit = self.rise.unwrap_or(f64::INFINITY);
        let count = predicted_count(&order, &self.rises, limit).min(self.count);
        let blocks = order[..count].to_vec();
        let sum: f64 = blocks.iter().map(|&block| self.rises[block]).sum();
        let outcome = Outcome::Predicted { metric: self.metric, value: self.metric.of(&self.base) + sum };
        self.chosen(blocks, outcome)
    }

    /// Blocks by what sets of them were measured to cost.
    pub(super) fn measured(self, runner: &mut dyn Runner, text: &Calibration) -> anyhow::Result<Chosen> {
        let mut meter = Meter::new(runner, text.chunks())?;
        let order = ascending(&self.rises);
        let bar = progress_bar(self.count as u64, "choosing", "{pos}/{len} blocks, perplexity {prefix},");
        let progress = |count: usize, score: &Score| {
            bar.set_prefix(format!("{:.3}", score.perplexity));
            bar.set_position(count as u64);
        };
        let tp = meter.tp();
        let own = meter.score(&crate::spd::Plan::synchronised(tp, order.len()))?;
        // The limit is relative to the model on this text.
        let limit = match (self.metric, self.rise) {
            (_, None) => f64::INFINITY,
            (Metric::Perplexity, Some(rise)) => own.perplexity * (1.0 + rise / self.base.perplexity),
            (Metric::Kl, Some(kl)) => kl,
        };
        let (blocks, score) = if let Some(candidates) = self.search {
            let search = Greedy { metric: self.metric, candidates, count: self.count, limit };
            let choices = greedy(&mut meter, search, &self.rises, progress)?;
            let score = choices.last().map_or(own, |choice| choice.score);
            (choices.into_iter().map(|choice| choice.block).collect(), score)
        } else {
            let (count, score) =
                longest_within(&mut meter, &order[..self.count], self.metric, limit, progress)?;
            (order[..count].to_vec(), score)
        };
        bar.finish_and_clear();
        Ok(self.chosen(blocks, Outcome::Measured { own, score }))
    }

    fn chosen(self, blocks: Vec<usize>, outcome: Outcome) -> Chosen {
        Chosen { blocks, ranked: Some((self.relative, self.classes)), outcome: Some(outcome) }
    }
}

/// What the chosen blocks do together.
enum Outcome {
    Predicted { metric: Metric, value: f64 },
    Measured { own: Score, score: Score },
}

/// Blocks to drop, in the order of choice, and why.
pub(super) struct Chosen {
    pub(super) blocks: Vec<usize>,
    /// Of every block of the model: relative rise and class.
    ranked: Option<(Vec<f64>, Vec<Class>)>,
    outcome: Option<Outcome>,
}

impl Chosen {
    /// Blocks that the user named.
    pub(super) fn named(blocks: Vec<usize>) -> Self {
        Self { blocks, ranked: None, outcome: None }
    }

    /// Every block with its class and action, and what dropping those chosen does.
    pub(super) fn table(&self) -> String {
        let Some((relative, classes)) = &self.ranked else { return String::new() };
        let mut text = String::from("block  class     rise  drops  action\n");
        for (block, (rise, class)) in relative.iter().zip(classes).enumerate() {
            let order = self.blocks.iter().position(|&chosen| chosen == block);
            let drops = order.map_or_else(|| "-".to_owned(), |order| format!("{}.", order + 1));
            let action = if order.is_some() { class.action() } else { "synchronise" };
            text += &format!("{block:5}  {:5} {:7.2}%  {drops:>5}  {action}\n", class.name(), rise * 100.0);
        }
        match &self.outcome {
            Some(Outcome::Measured { own, score }) => {
                text += &format!(
                    "measured: perplexity {:.4}, {:+.2}% against {:.4}; kl {:.5}; top-1 agreement {:.4}\n",
                    score.perplexity,
                    (score.perplexity / own.perplexity - 1.0) * 100.0,
                    own.perplexity,
                    score.kl,
                    score.top1_agreement
                );
            }
            Some(Outcome::Predicted { metric, value }) => {
                let name = if *metric == Metric::Kl { "kl" } else { "perplexity" };
                text += &format!(
                    "predicted: {name} {value:.4}, the sum of the blocks' rises (give --text to measure)\n"
                );
            }
            None => {}
        }
        text
    }

    /// The same for programs.
    pub(super) fn json(&self) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("dropped".into(), json!(self.blocks));
        if let Some((relative, classes)) = &self.ranked {
            let entry = |(block, (rise, class)): (usize, (&f64, &Class))| {
                let drops = self.blocks.contains(&block);
                let action = if drops { class.action() } else { "synchronise" };
                json!({ "block": block, "class": class, "rise": rise, "drops": drops, "action": action })
            };
            let entries: Vec<Value> = relative.iter().zip(classes).enumerate().map(entry).collect();
            map.insert("blocks".into(), json!(entries));
        }
        match &self.outcome {
            Some(Outcome::Measured { own, score }) => {
                map.insert("synchronised".into(), json!(own));
                map.insert("measured".into(), json!(score));
            }
            Some(Outcome::Predicted { metric, value }) => {
                map.insert("predicted".into(), json!({ "metric": metric, "value": value }));
            }
            None => {}
        }
        map
    }
}
