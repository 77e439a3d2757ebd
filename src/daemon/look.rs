//! The look at the config file: when its content is another one, it is read again as SIGHUP would have it.
//!
//! Owns when it is looked at, and how it looked last; what comes of it is the loop's. A file that looks the same from
//! outside (its number, size and times) isn't read. Each content is tried once from here: one that is refused is tried
//! again only when it has changed, or when somebody asks for it. What somebody else has taken isn't tried again, nor
//! what an operator has rolled back from. A file that is missing for a while, as between two versions of a volume, is
//! no change. May panic and be run again.

use crate::admin::command::{Asker, Command, Commands, Why};
use crate::config::{Config, limits};
use arc_swap::ArcSwap;
use std::fs::{Metadata, OpenOptions};
use std::future::pending;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use xxhash_rust::xxh3::xxh3_64;

/// How often somebody looks whether to look, while it is off.
const OFF: Duration = Duration::from_secs(1);

/// How much later something is tried again that could not be tried.
const AGAIN: Duration = Duration::from_secs(10);

/// The config file, and the hash of the content of it that was tried last, be it here or because somebody asked.
#[derive(Clone, Debug)]
pub struct Looked {
    pub path: PathBuf,
    pub tried: Arc<AtomicU64>,
}

/// What of a file tells from outside that it may be another one.
type Outside = (u64, u64, u64, i64, i64, i64, i64);

/// Looks for ever, as often as the config in force says.
pub async fn at_the_file(file: Option<Looked>, config: Arc<ArcSwap<Config>>, commands: Commands) {
    let Some(Looked { path, tried }) = file else { return pending().await };
    let mut outside = None;
    loop {
        let span = config.load().runtime.watch;
        sleep(span.unwrap_or(OFF)).await;
        if span.is_none() {
            continue;
        }
        let (looked, before) = (path.clone(), outside);
        // A disk may keep one waiting.
        let Ok(Some((seen, found))) = spawn_blocking(move || look(&looked, before)).await else { continue };
        let last = tried.load(Relaxed);
        if found == last {
            outside = Some(seen);
            continue;
        }
        let answer = commands.ask(Command::Reload, Asker::Watch).await;
        if answer.is_err_and(|refused| matches!(refused.why, Why::Busy | Why::Conflict)) {
            // It was not even tried.
            sleep(AGAIN).await;
        } else {
            outside = Some(seen);
            // What was taken is noted already, and may be newer than what was found here.
            let _ = tried.compare_exchange(last, found, Relaxed, Relaxed);
        }
    }
}

/// How the file looks now, and the hash of its content; `None` if it looks as `before`, or can't be read.
fn look(path: &Path, before: Option<Outside>) -> Option<(Outside, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    let seen = outside(&metadata);
    if Some(seen) == before || !metadata.is_file() {
        return None;
    }
    let mut content = Vec::new();
    // Not blocking, or the open of a FIFO would wait for a writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).ok()?;
    file.take(limits::MAX_FILE + 1).read_to_end(&mut content).ok()?;
    // The hash is that of the text, which is without it.
    let text = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&content);
    Some((seen, xxh3_64(text)))
}

fn outside(file: &Metadata) -> Outside {
    (file.dev(), file.ino(), file.len(), file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_is_read_only_if_it_looks_otherwise_and_told_by_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lb.toml");
        assert_eq!(look(&path, None), None, "a file that isn't there is no change");
        fs::write(&path, "a").unwrap();
        let (seen, hash) = look(&path, None).unwrap();
        assert_eq!((hash, look(&path, Some(seen))), (xxh3_64(b"a"), None));
        let new = dir.path().join("new");
        fs::write(&new, "\u{feff}a").unwrap();
        fs::rename(&new, &path).unwrap();
        let (other, hash) = look(&path, Some(seen)).unwrap();
        assert_eq!((other == seen, hash), (false, xxh3_64(b"a")), "another file of the same text");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(look(&path, None), None);
    }
}
