//! stub
use crate::{config, metrics::Metrics};
use std::{
    fmt, io,
    sync::Arc,
    time::{Duration, SystemTime},
};
pub struct LogGuard;
#[derive(Clone)]
pub struct AccessLog;
pub struct AccessWriter;
pub struct Line<'a>(&'a mut String);
pub fn init(_: &config::Log, _: &Arc<Metrics>) -> io::Result<LogGuard> {
    Ok(LogGuard)
}
impl AccessLog {
    pub fn open(_: &config::Log, _: &Arc<Metrics>) -> io::Result<Option<AccessLog>> {
        Ok(None)
    }
    pub fn writer(&self) -> AccessWriter {
        AccessWriter
    }
}
impl AccessWriter {
    pub fn line(&mut self, w: impl FnOnce(&mut Line<'_>)) {
        w(&mut Line(&mut String::new()))
    }
    pub fn flush(&mut self) {}
}
impl Line<'_> {
    pub fn text(&mut self, _: &str, v: &str) {
        self.0.push_str(v)
    }
    pub fn display(&mut self, _: &str, _: &dyn fmt::Display) {}
    pub fn number(&mut self, _: &str, _: u64) {}
    pub fn seconds(&mut self, _: &str, _: Duration) {}
    pub fn time(&mut self, _: &str, _: SystemTime) {}
}
