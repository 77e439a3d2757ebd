//! The output streams of a child process, kept by threads as they come.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Mutex, mpsc};

/// One output stream of the child as far as it has come.
#[derive(Clone, Default)]
pub struct Output(Arc<Mutex<Text>>);

#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    reading: bool,
}

impl Output {
    pub fn all(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap().bytes).into_owned()
    }

    pub fn has_ended(&self) -> bool {
        !self.0.lock().unwrap().reading
    }
}

/// Keeps all that comes from a stream.
pub fn keep(stream: impl Read + Send + 'static) -> Output {
    keep_telling(stream, mpsc::channel().0)
}

/// Keeps all that comes from a stream, and tells its first line.
pub fn keep_telling(stream: impl Read + Send + 'static, first: mpsc::Sender<String>) -> Output {
    let output = Output(Arc::new(Mutex::new(Text { bytes: Vec::new(), reading: true })));
    let kept = output.clone();
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let (mut line, mut first) = (Vec::new(), Some(first));
        while stream.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            kept.0.lock().unwrap().bytes.extend_from_slice(&line);
            if let Some(first) = first.take() {
                let _ = first.send(String::from_utf8_lossy(&line).into_owned());
            }
            line.clear();
        }
        kept.0.lock().unwrap().reading = false;
    });
    output
}
