//! The line of `systemctl status`: how many sessions there are, and which config serves them.
//!
//! Owns its words and its pace; that the last reload was refused stays in it until another config is taken. A stop says
//! its own. Without a service manager there is nothing to do.

use super::gates::notify;
use super::start::Shared;
use crate::admin::Phase;
use sd_notify::NotifyState;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// From one look to the next.
const PACE: Duration = Duration::from_secs(5);

/// Tells for ever, while the process serves.
pub async fn tell(shared: Shared, mut phase: watch::Receiver<Phase>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return std::future::pending().await;
    }
    let mut told = String::new();
    // An error means that the loop is gone.
    while phase.wait_for(|phase| *phase == Phase::Ready).await.is_ok() {
        let line = of(&shared);
        if line != told {
            notify(&[NotifyState::Status(&line)]);
            told = line;
        }
        sleep(PACE).await;
    }
}

/// As things are.
pub fn of(shared: &Shared) -> String {
    let status = shared.config_status.load();
    let refused = status.last_refused.as_ref().and_then(|refused| refused.text.lines().next());
    line(shared.process.active() as u64, shared.table.load().generation, refused)
}

fn line(sessions: u64, generation: u64, refused: Option<&str>) -> String {
    let plural = if sessions == 1 { "" } else { "s" };
    let refused = refused.map(|line| format!("; the last reload was refused: {line}")).unwrap_or_default();
    format!("serving {} session{plural}, generation {generation}{refused}", grouped(sessions))
}

/// With commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.char_indices() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_can_read_it() {
        assert_eq!(line(0, 1, None), "serving 0 sessions, generation 1");
        assert_eq!(line(1, 2, None), "serving 1 session, generation 2");
        assert_eq!(line(1_234, 7, None), "serving 1,234 sessions, generation 7");
        assert_eq!(line(12_345_678, 10, None), "serving 12,345,678 sessions, generation 10");
        assert_eq!(
            line(0, 3, Some("lb.toml:1:1: wrong")),
            "serving 0 sessions, generation 3; the last reload was refused: lb.toml:1:1: wrong"
        );
    }
}
