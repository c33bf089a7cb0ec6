//! Which ranks share a host, and the shape that follows.

use std::{collections::BTreeMap, fs};

use crate::comm::{Shape, TopologyError};

/// What tells this host from others: its name and, on Linux, the number of its boot, since names may repeat.
pub(super) fn this_host() -> String {
    let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let name = read("/proc/sys/kernel/hostname").or_else(|| std::env::var("HOSTNAME").ok());
    let name = name.filter(|name| !name.is_empty()).unwrap_or_else(|| "localhost".to_owned());
    match read("/proc/sys/kernel/random/boot_id") {
        Some(boot) => format!("{name} (boot {boot})"),
        None => name,
    }
}

/// Nodes × ranks per node from the hosts of ranks 0, 1, …: a host is a node.
///
/// # Errors
/// [`TopologyError::Scattered`] where a host's ranks do not follow each other, [`TopologyError::Uneven`] where hosts
/// have different numbers of ranks.
pub fn shape_of_hosts(hosts: &[String]) -> Result<Shape, TopologyError> {
    let name = |host: &str| host.split(" (boot ").next().unwrap_or(host).to_owned();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for run in hosts.chunk_by(|a, b| a == b) {
        if counts.insert(&run[0], run.len()).is_some() {
            let ranks = (0..hosts.len()).filter(|&rank| hosts[rank] == run[0]).collect();
            return Err(TopologyError::Scattered { host: name(&run[0]), ranks });
        }
    }
    let first = counts.get(hosts.first().map_or("", String::as_str)).copied().unwrap_or(0);
    if let Some((other, &ranks)) = counts.iter().find(|&(_, &count)| count != first) {
        let (host, other) = (name(&hosts[0]), name(other));
        return Err(TopologyError::Uneven { host, ranks: first, other, other_ranks: ranks });
    }
    Shape::new(counts.len(), first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(hosts: &str) -> Result<String, String> {
        let hosts: Vec<_> = hosts.split_whitespace().map(|h| format!("{h} (boot {h}-1)")).collect();
        shape_of_hosts(&hosts).map(|shape| shape.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_host_is_a_node() {
        assert_eq!(shape("a"), Ok("1x1".into()));
        assert_eq!(shape("a a a"), Ok("1x3".into()));
        assert_eq!(shape("b b a a c c"), Ok("3x2".into()));
        assert_eq!(shape("c b a"), Ok("3x1".into()));
    }

    #[test]
    fn other_layouts_get_a_sentence() {
        let scattered = shape("a b a b").unwrap_err();
        assert!(scattered.contains("host a") && scattered.contains("ranks 0, 2 share"), "{scattered}");
        assert!(scattered.contains("--topology"), "{scattered}");
        let uneven = shape("a a b").unwrap_err();
        assert!(uneven.contains("a has 2") && uneven.contains("b has 1"), "{uneven}");
    }

    #[test]
    fn this_host_has_a_name() {
        assert!(!this_host().is_empty());
        assert_eq!(this_host(), this_host());
    }
}
