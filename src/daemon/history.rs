//! The configs that this process has had: their texts, so that it can go back, and what is told of them.
//!
//! Owns how many are kept, which of them a successor gets, what `/status` and the metrics say of the config, and which
//! of them `rollback` means. Invariants: the last one is the one in force; a text that is kept was in force once, in
//! this process or one before it; an upgrade with the same text makes no new one. Next: `configs`, which takes one of
//! them through the two phases of a reload again.

use crate::admin::{ConfigStatus, Generation, Moment, RefusedConfig};
use crate::config::diff::Diff;
use crate::config::{Config, limits};
use crate::metrics::{Gauge, Metrics, ReloadResult, Series};
use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// As many configs are kept as this, and as long as their texts have no more bytes together; two in any case.
const KEPT: usize = 10;
const KEPT_BYTES: usize = 64 << 20;
/// A successor gets the newest of them whose texts have no more bytes together. So the config in force and the one
/// before it go over in any case, since a config file has [`limits::MAX_FILE`] at most.
const LEFT_BYTES: usize = 2 * limits::MAX_FILE as usize;

/// One of them, as a successor gets it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Past {
    generation: u64,
    hash: String,
    loaded_unix_ms: u64,
    by: String,
    #[serde(default)]
    rollback_to: Option<u64>,
    text: Box<str>,
}

/// What has been in force.
pub struct History {
    /// What the process was started with: it goes by this wherever only a new one could go by another.
    started: Arc<Config>,
    /// The oldest first.
    kept: VecDeque<(Generation, Arc<str>)>,
    status: Arc<ArcSwap<ConfigStatus>>,
    metrics: Arc<Metrics>,
    /// Its series is there as long as this is.
    info: Series<Gauge>,
}

/// Where it is told of.
#[derive(Clone, Copy)]
pub struct Told<'a> {
    pub status: &'a Arc<ArcSwap<ConfigStatus>>,
    pub metrics: &'a Arc<Metrics>,
}

/// A config that comes into force.
pub struct Next<'a> {
    pub generation: u64,
    pub hash: String,
    pub text: &'a Arc<str>,
    pub config: &'a Config,
    pub by: String,
    pub rollback_to: Option<u64>,
}

impl History {
    /// Of a process that starts with its first config; `past` is what a predecessor has left, the oldest first. If that
    /// had the same config in force, it has been so since then, for whoever asked for it then.
    pub fn new(config: &Arc<Config>, past: Vec<Past>, first: Next<'_>, path: Option<&Path>, told: Told<'_>) -> Self {
        let Told { status, metrics } = told;
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let file = path.map(|path| absolute(path).display().to_string());
        status.store(Arc::new(ConfigStatus { file, ..ConfigStatus::default() }));
        let mut kept: Vec<_> = past.into_iter().map(Past::into_kept).collect();
        let same = kept.pop_if(|(entry, _)| entry.generation == first.generation).map(|(entry, _)| entry);
        let mut history = Self {
            started: Arc::clone(config),
            kept: kept.into(),
            status: Arc::clone(status),
            metrics: Arc::clone(metrics),
            info: metrics.config_info(&first.hash),
        };
        match same {
            Some(Generation { loaded, by, rollback_to, .. }) => history.take(Next { by, rollback_to, ..first }, loaded),
            None => history.take(first, now()),
        }
        history
    }

    /// What a successor is to have of it, the oldest first.
    pub fn left(&self) -> Vec<Past> {
        let mut room = LEFT_BYTES;
        let fits = |(_, text): &&(Generation, Arc<str>)| {
            let rest = room.checked_sub(text.len());
            room = rest.unwrap_or_default();
            rest.is_some()
        };
        let mut left: Vec<_> = self.kept.iter().rev().take_while(fits).map(Past::of).collect();
        left.reverse();
        left
    }

    /// What the process was started with.
    pub fn started(&self) -> &Config {
        &self.started
    }

    /// Keys that an upgrade would take over.
    pub fn needs_upgrade(&self) -> Vec<&'static str> {
        self.status.load().needs_upgrade.clone()
    }

    /// Another config is in force.
    pub fn changed(&mut self, next: Next<'_>) {
        self.metrics.reloads(ReloadResult::Changed).inc();
        self.take(next, now());
    }

    fn take(&mut self, next: Next<'_>, loaded: Moment) {
        let Next { generation, hash, text, config, by, rollback_to } = next;
        let entry = Generation { generation, hash: hash.clone(), loaded, by: by.clone(), rollback_to };
        self.kept.push_back((entry, Arc::clone(text)));
        let bytes = |kept: &VecDeque<(Generation, Arc<str>)>| kept.iter().map(|(_, text)| text.len()).sum::<usize>();
        while self.kept.len() > KEPT || self.kept.len() > 2 && bytes(&self.kept) > KEPT_BYTES {
            self.kept.pop_front();
        }
        // The new series first, so that a scrape finds one of them at least.
        self.info = self.metrics.config_info(&hash);
        self.succeeded();
        self.status.store(Arc::new(ConfigStatus {
            hash,
            loaded,
            by,
            file: self.status.load().file.clone(),
            needs_upgrade: Diff::of(&self.started, config).needs_new_process(),
            generations: self.kept.iter().rev().map(|(entry, _)| entry.clone()).collect(),
            last_refused: None,
        }));
    }

    /// What was asked for is what is in force.
    pub fn unchanged(&self) {
        self.metrics.reloads(ReloadResult::Unchanged).inc();
        self.succeeded();
        let status = ConfigStatus { last_refused: None, ..(**self.status.load()).clone() };
        self.status.store(Arc::new(status));
    }

    /// What was asked for can't be had.
    pub fn refused(&self, by: String, text: String) {
        self.metrics.reloads(ReloadResult::Refused).inc();
        self.metrics.last_reload_success.set(0);
        let refused = RefusedConfig { at: now(), by, text };
        let status = ConfigStatus { last_refused: Some(refused), ..(**self.status.load()).clone() };
        self.status.store(Arc::new(status));
    }

    fn succeeded(&self) {
        self.metrics.last_reload_success.set(1);
        self.metrics.last_reload_timestamp.set(now().unix_seconds() as i64);
    }

    /// The number and text of a generation; without a number, of the one before that in force. Fails with a sentence
    /// that says which there are.
    pub fn find(&self, number: Option<u64>) -> Result<(u64, Arc<str>), String> {
        let found = match number {
            Some(number) => self.kept.iter().find(|(entry, _)| entry.generation == number),
            None => self.kept.len().checked_sub(2).and_then(|before| self.kept.get(before)),
        };
        if let Some((entry, text)) = found {
            return Ok((entry.generation, Arc::clone(text)));
        }
        let numbers: Vec<String> = self.kept.iter().map(|(entry, _)| entry.generation.to_string()).collect();
        Err(match number {
            Some(number) => {
                format!("generation {number} isn't kept (any more); name one of {}", numbers.join(", "))
            }
            None => "there is no generation before the one in force".to_owned(),
        })
    }
}

impl Past {
    fn of((entry, text): &(Generation, Arc<str>)) -> Self {
        let Generation { generation, hash, loaded, by, rollback_to } = entry.clone();
        Self { generation, hash, loaded_unix_ms: loaded.unix_ms(), by, rollback_to, text: (&**text).into() }
    }

    fn into_kept(self) -> (Generation, Arc<str>) {
        let Self { generation, hash, loaded_unix_ms, by, rollback_to, text } = self;
        (Generation { generation, hash, loaded: Moment::of_unix_ms(loaded_unix_ms), by, rollback_to }, text.into())
    }
}

fn now() -> Moment {
    Moment::of(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Arc<Config> {
        let rest =
            "listeners.web = { bind = \"127.0.0.1:80\", pool = \"web\" }\npools.web.backends = [\"10.0.0.1:80\"]";
        Arc::new(Config::parse("lb.toml", format!("{rest}\n{text}").as_bytes()).unwrap().config)
    }

    fn next<'a>(generation: u64, text: &'a Arc<str>, config: &'a Config) -> Next<'a> {
        let hash = format!("{generation:016x}");
        Next { generation, hash, text, config, by: "SIGHUP".to_owned(), rollback_to: None }
    }

    fn history(config: &Arc<Config>) -> (History, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new().unwrap());
        let text = "first".into();
        let told = Told { status: &Arc::default(), metrics: &metrics };
        (History::new(config, Vec::new(), next(1, &text, config), None, told), metrics)
    }

    /// Of a process after that one, which starts with this.
    fn successor(before: &History, generation: u64, text: &Arc<str>, config: &Arc<Config>) -> History {
        let told = Told { status: &Arc::default(), metrics: &Arc::new(Metrics::new().unwrap()) };
        let left = serde_json::from_slice(&serde_json::to_vec(&before.left()).unwrap()).unwrap();
        let first = Next { by: "upgrade".to_owned(), ..next(generation, text, config) };
        History::new(config, left, first, None, told)
    }

    fn shown(history: &History) -> Vec<(u64, String)> {
        let status = history.status.load();
        status.generations.iter().map(|entry| (entry.generation, entry.by.clone())).collect()
    }

    #[test]
    fn a_successor_goes_on_with_them_and_with_another_text_there_is_one_more() {
        let config = config("");
        let (mut before, _) = history(&config);
        let back = "first".into();
        before.changed(next(2, &"second".into(), &config));
        before.changed(Next { rollback_to: Some(1), ..next(3, &back, &config) });
        let own = |number| (number, "SIGHUP".to_owned());

        let same = successor(&before, 3, &back, &config);
        assert_eq!(shown(&same), [own(3), own(2), own(1)]);
        assert_eq!(same.find(None), Ok((2, "second".into())));
        let (entry, _) = same.kept.back().unwrap();
        assert_eq!((entry.rollback_to, entry.loaded), (Some(1), before.kept.back().unwrap().0.loaded));

        let another = successor(&before, 4, &"third".into(), &config);
        assert_eq!(shown(&another), [(4, "upgrade".to_owned()), own(3), own(2), own(1)]);
        assert_eq!(another.find(None), Ok((3, "first".into())));
    }

    #[test]
    fn of_large_texts_a_successor_gets_the_one_in_force_and_the_one_before_in_any_case() {
        let config = config("");
        let (mut history, _) = history(&config);
        let largest: Arc<str> = "x".repeat(limits::MAX_FILE as usize).into();
        for number in 2..=4 {
            history.changed(next(number, &largest, &config));
        }
        assert_eq!(history.kept.len(), 4);
        assert_eq!(history.left().iter().map(|past| past.generation).collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn the_last_ten_are_kept_and_the_one_before_is_the_one_to_go_back_to() {
        let config = config("");
        let (mut history, metrics) = history(&config);
        assert_eq!(history.find(None).unwrap_err(), "there is no generation before the one in force");
        for number in 2..=12 {
            history.changed(next(number, &format!("text {number}").into(), &config));
        }
        assert_eq!(history.find(None).unwrap(), (11, "text 11".into()));
        assert_eq!(history.find(Some(3)).unwrap(), (3, "text 3".into()));
        let missing = "generation 2 isn't kept (any more); name one of 3, 4, 5, 6, 7, 8, 9, 10, 11, 12";
        assert_eq!(history.find(Some(2)).unwrap_err(), missing);
        let shown: Vec<u64> = history.status.load().generations.iter().map(|entry| entry.generation).collect();
        assert_eq!(shown, (3..=12).rev().collect::<Vec<_>>());
        let text = metrics.encode().unwrap();
        let info: Vec<_> = text.lines().filter(|line| line.starts_with("tidegate_config_info{")).collect();
        assert_eq!(info, ["tidegate_config_info{hash=\"000000000000000c\"} 1"], "of the one in force alone");
    }

    #[test]
    fn large_texts_are_fewer() {
        let config = config("");
        let (mut history, _) = history(&config);
        let large: Arc<str> = "x".repeat(KEPT_BYTES * 2 / 5).into();
        for number in 2..=5 {
            history.changed(next(number, &large, &config));
        }
        assert_eq!(history.kept.len(), 2);
    }

    #[test]
    fn what_needs_a_new_process_is_told_until_it_is_as_at_the_start() {
        let (at_start, other) = (config(""), config("runtime.workers = 3\nlog.level = \"debug\""));
        let (mut history, _) = history(&at_start);
        history.changed(next(2, &"".into(), &other));
        assert_eq!(history.needs_upgrade(), ["runtime.workers"]);
        history.changed(next(3, &"".into(), &at_start));
        assert!(history.needs_upgrade().is_empty());
    }

    #[test]
    fn a_refusal_is_told_until_something_is_taken() {
        let config = config("");
        let (mut history, metrics) = history(&config);
        let last = |history: &History| history.status.load().last_refused.as_ref().map(|refused| refused.text.clone());
        history.refused("SIGHUP".to_owned(), "line 3: no".to_owned());
        assert_eq!((last(&history).as_deref(), metrics.last_reload_success.get()), (Some("line 3: no"), 0));
        history.unchanged();
        assert_eq!((last(&history), metrics.last_reload_success.get()), (None, 1));
        history.refused("SIGHUP".to_owned(), "line 4: no".to_owned());
        history.changed(next(2, &"".into(), &config));
        assert_eq!((last(&history), metrics.last_reload_success.get()), (None, 1));
        let counts: Vec<u64> = ReloadResult::ALL.iter().map(|result| metrics.reloads(*result).get()).collect();
        assert_eq!(counts, [1, 1, 2]);
    }
}
