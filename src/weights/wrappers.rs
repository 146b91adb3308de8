//! Removes what training programs wrap around a network: prefixes of tensor names, and dicts that contain its state.

use std::collections::HashSet;

use super::Weights;

/// The prefix that data-parallel training adds to every name.
const MODULE: &str = "module.";

/// Components that wrappers insert anywhere in names: `torch.compile`, FSDP, activation checkpointing.
const COMPONENTS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// Keys under which training programs save a network's state, in the order in which they are tried.
const STATES: [&str; 10] = [
    "state_dict",
    "model",
    "module",
    "model_state_dict",
    "net",
    "network",
    "params",
    "ema",
    "model_ema",
    "ema_state_dict",
];

/// Maximum nesting of such keys: `{"model": {"state_dict": …}}`.
const DEEPEST: usize = 3;

impl Weights {
    /// Removes what wrappers add to names: `module.` at the start, if every name has it, and the components
    /// `_orig_mod` (`torch.compile`), `_fsdp_wrapped_module` and `_checkpoint_wrapped_module` anywhere, however
    /// nested. Returns the names unchanged if two of them would collide.
    pub fn without_module(&self) -> Self {
        let mut plain = self.clone();
        loop {
            let unwrapped = plain.without_components();
            let all = !unwrapped.is_empty() && unwrapped.names().all(|name| name.starts_with(MODULE));
            if !all {
                return unwrapped;
            }
            plain = unwrapped.renamed(|name| name.strip_prefix(MODULE).map(str::to_owned));
        }
    }

    fn without_components(&self) -> Self {
        let is_wrapper = |part: &str| COMPONENTS.contains(&part);
        if !self.names().any(|name| name.split('.').any(is_wrapper)) {
            return self.clone();
        }
        let rename = |name: &str| {
            let kept: Vec<&str> = name.split('.').filter(|part| !is_wrapper(part)).collect();
            kept.join(".")
        };
        let renamed: HashSet<String> = self.names().map(rename).collect();
        if renamed.len() < self.len() {
            return self.clone();
        }
        self.renamed(|name| Some(rename(name)))
    }

    /// The tensors of a network that has one of the tensors `marks`, under its own names. A training program may have
    /// wrapped the network ([`without_module`](Self::without_module)) and saved its state together with other data: if
    /// no name at the top level is one of the marks, the network is searched below `state_dict`, `model`, `module`,
    /// `model_state_dict`, `net`, `network`, `params`, `ema`, `model_ema` and `ema_state_dict`, in this order, up to
    /// three levels deep. If it is not found, everything at the top level is returned.
    pub fn network(&self, marks: &[&str]) -> Self {
        let holds = |weights: &Self| marks.iter().any(|mark| weights.contains(mark));
        let top = self.without_module();
        let mut level = vec![(String::new(), self.clone())];
        for _ in 0..=DEEPEST {
            let fits = |(key, weights): &(String, Self)| {
                let plain = weights.without_module();
                holds(&plain).then(|| (key.clone(), plain))
            };
            let mut fitting = level.iter().filter_map(fits);
            if let Some((key, found)) = fitting.next() {
                let others: Vec<String> = fitting.map(|(key, _)| key).collect();
                if !others.is_empty() {
                    tracing::warn!(
                        "{}: using the weights under {key}; there are others under {} (select them with `convert --within`)",
                        self.path().display(),
                        others.join(", ")
                    );
                }
                return found;
            }
            let below = |(key, weights): &(String, Self)| {
                let dot = if key.is_empty() { "" } else { "." };
                let inner = STATES.map(|state| (format!("{key}{dot}{state}"), weights.within(state)));
                inner.into_iter().filter(|(_, weights)| !weights.is_empty()).collect::<Vec<_>>()
            };
            level = level.iter().flat_map(below).collect();
        }
        top
    }
}
