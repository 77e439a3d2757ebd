//! The page at `/`: the status for people, rendered here, without script, image or anything from elsewhere.
//!
//! Owns the HTML and its escaping. Every text that isn't a constant of this file passes through [`Escaped`].

use super::Phase;
use super::generations::{ConfigStatus, Generation, RefusedConfig};
use super::moment::Moment;
use super::status::{BackendStatus, LimitStatus, Listener, PoolStatus, RouteStatus, Status};
use bytesize::ByteSize;
use std::fmt::{self, Display, Formatter, Write};
use std::time::Duration;

/// Beside the page and not in it, so that the policy of the answer can forbid styles within.
pub const STYLE: &str = include_str!("style.css");

pub fn render(status: &Status) -> String {
    Page(status).to_string()
}

struct Page<'a>(&'a Status);

impl Display for Page<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Status { version, phase, ready, gates, generation, workers, started, now, .. } = self.0;
        f.write_str(concat!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n",
            "<meta name=\"viewport\" content=\"width=device-width\">\n<meta http-equiv=\"refresh\" content=\"5\">\n",
            "<title>tidegate</title>\n<link rel=\"stylesheet\" href=\"/style.css\">\n",
        ))?;
        writeln!(f, "<h1>tidegate <small>{}</small></h1>", Escaped(version))?;
        let running = Coarse(started.until(*now));
        let phase = if *phase == Phase::Ready.as_str() && !ready { "not ready" } else { phase };
        writeln!(f, "<p>{}, running for {running}, generation {generation}, {workers} workers", Escaped(phase))?;
        if !gates.is_empty() {
            f.write_str("<ul class=\"gates\">\n")?;
            for gate in gates {
                writeln!(f, "<li>{}", Escaped(gate))?;
            }
            f.write_str("</ul>\n")?;
        }
        self.beside_the_file(f)?;
        self.listeners(f)?;
        self.limits(f)?;
        self.0.pools.iter().try_for_each(|pool| self.pool(pool, f))?;
        self.configs(f)?;
        f.write_str(
            "<p><a href=\"/status\">status</a> <a href=\"/metrics\">metrics</a> <a href=\"/readyz\">readyz</a>\n",
        )
    }
}

impl Page<'_> {
    /// In what the process isn't as its config file says.
    fn beside_the_file(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Status { needs_upgrade, adjustments, .. } = self.0;
        if !needs_upgrade.is_empty() {
            writeln!(f, "<p class=\"degraded\">waits for an upgrade: {}", Escaped(&needs_upgrade.join(", ")))?;
        }
        let listeners = adjustments.listeners.keys().map(|name| format!("listener {name}"));
        let pools = adjustments.pools.keys().map(|name| format!("pool {name}"));
        let level = adjustments.log_level.map(|level| format!("log {}", level.word()));
        let changed: Vec<String> = listeners.chain(pools).chain(level).collect();
        if changed.is_empty() {
            return Ok(());
        }
        writeln!(f, "<p>changed at run time: {}", Escaped(&changed.join(", ")))
    }

    fn listeners(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("<h2>Listeners</h2>\n<table>\n")?;
        f.write_str("<tr><th>name<th>bind<th>pool<th>state<th>active<th>total\n")?;
        for Listener { name, bind, pool, state, active, total, .. } in &self.0.listeners {
            write!(
                f,
                "<tr><td>{}<td>{}<td>{}",
                Escaped(name),
                Escaped(&bind.join(", ")),
                Escaped(pool.as_deref().unwrap_or("-"))
            )?;
            writeln!(f, "<td class=\"{state}\">{state}<td class=\"number\">{active}<td class=\"number\">{total}")?;
        }
        f.write_str("</table>\n")?;
        self.0
            .listeners
            .iter()
            .filter(|listener| !listener.routes.is_empty())
            .try_for_each(|listener| routes(listener, f))
    }

    fn limits(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("<h2>Limits</h2>\n<table>\n<tr><th>scope<th>name<th>connections<th>clients known")?;
        f.write_str("<th>refused<th>in a dry run\n")?;
        for limit in &self.0.limits {
            let LimitStatus { scope, name, connections, max_connections, clients, max_clients, .. } = limit;
            let class = if max_connections.is_some_and(|max| *connections >= max) { "number down" } else { "number" };
            write!(f, "<tr><td>{scope}<td>{}<td class=\"{class}\">", Escaped(name))?;
            write!(f, "{}<td class=\"number\">", OfMost(*connections, *max_connections))?;
            if let Some(clients) = clients {
                write!(f, "{}", OfMost(*clients, *max_clients))?;
            }
            writeln!(f, "<td class=\"number\">{}<td class=\"number\">{}", limit.refused, limit.refused_dry_run)?;
        }
        f.write_str("</table>\n")
    }

    /// The last generations, the one in force first.
    fn configs(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let ConfigStatus { file, generations, last_refused, .. } = &self.0.config;
        let ago = |moment: Moment| Coarse(moment.until(self.0.now));
        writeln!(f, "<h2>Config <small>{}</small></h2>", Escaped(file.as_deref().unwrap_or_default()))?;
        if let Some(RefusedConfig { at, by, text }) = last_refused {
            write!(f, "<p class=\"down\">refused {} ago, asked for by {}: ", ago(*at), Escaped(by))?;
            writeln!(f, "{}", Escaped(text))?;
        }
        f.write_str("<table>\n<tr><th>generation<th>hash<th>since<th>asked for by\n")?;
        for Generation { generation, hash, loaded, by, rollback_to } in generations {
            write!(f, "<tr><td class=\"number\">{generation}<td>{}<td>{} ago", Escaped(hash), ago(*loaded))?;
            write!(f, "<td>{}", Escaped(by))?;
            match rollback_to {
                Some(back) => writeln!(f, ", back to {back}")?,
                None => f.write_str("\n")?,
            }
        }
        f.write_str("</table>\n")
    }

    fn pool(&self, pool: &PoolStatus, f: &mut Formatter<'_>) -> fmt::Result {
        let PoolStatus { name, balance, available, panic, tier, queue, shed, hold, backends, .. } = pool;
        write!(f, "<h2>Pool {} <small>{}", Escaped(name), Escaped(balance))?;
        if let Some(key) = &pool.hash_key {
            write!(f, " by {}", Escaped(key))?;
        }
        if let Some(version) = pool.send_proxy_protocol {
            write!(f, ", sends PROXY headers ({version})")?;
        }
        write!(f, ", {available} of {} available", backends.len())?;
        if *tier > 0 {
            write!(f, ", tiers up to {tier} in use")?;
        }
        if let Some(queue) = queue {
            let class = if queue.waiting >= queue.max_waiting { "down" } else { "" };
            write!(f, ", queue: <span class=\"{class}\">{} of {}</span>", queue.waiting, queue.max_waiting)?;
        }
        if let Some(shed) = shed {
            let class = if shed.probability > 0.0 { "down" } else { "" };
            let dry_run = if shed.dry_run { " (dry run)" } else { "" };
            write!(f, ", shed{dry_run}: <span class=\"{class}\">{:.0} %</span>", shed.probability * 100.0)?;
        }
        if let Some(hold) = hold {
            let class = if hold.held > 0 { "down" } else { "" };
            write!(f, ", held: <span class=\"{class}\">{} of {}</span>", hold.held, hold.max_connections)?;
        }
        if *panic {
            write!(f, ", <span class=\"down\">panic: all enabled are used</span>")?;
        }
        writeln!(f, "</small></h2>")?;
        f.write_str(
            "<table>\n<tr><th>backend<th>address<th>tier<th>weight<th>share<th>state<th>for<th>active<th>total",
        )?;
        f.write_str("<th>to backend<th>to client<th>last error\n")?;
        backends.iter().try_for_each(|backend| self.backend(backend, f))?;
        f.write_str("</table>\n")
    }

    fn backend(&self, backend: &BackendStatus, f: &mut Formatter<'_>) -> fmt::Result {
        let BackendStatus {
            name,
            address,
            weight,
            weight_configured,
            tier,
            state,
            share,
            since,
            active,
            max_connections,
            total,
            bytes,
            last_error,
            ..
        } = backend;
        write!(f, "<tr><td>{}<td>{}<td class=\"number\">{tier}", Escaped(name), Escaped(address))?;
        write!(f, "<td class=\"number\">{weight}")?;
        if weight != weight_configured {
            write!(f, " (file: {weight_configured})")?;
        }
        write!(f, "<td class=\"number\">{:.0} %", share * 100.0)?;
        write!(f, "<td class=\"{state}\">{state}<td>{}", Coarse(since.until(self.0.now)))?;
        let full = max_connections.is_some_and(|max| *active >= max);
        write!(f, "<td class=\"number{}\">", if full { " degraded" } else { "" })?;
        write!(f, "{}<td class=\"number\">{total}", OfMost(*active, *max_connections))?;
        for bytes in [bytes.to_backend, bytes.to_client] {
            write!(f, "<td class=\"number\">{}", ByteSize(bytes).display().iec())?;
        }
        match last_error {
            Some(error) => writeln!(f, "<td>{} ({} ago)", Escaped(&error.text), Coarse(error.at.until(self.0.now))),
            None => f.write_str("<td>\n"),
        }
    }
}

/// A text as HTML shows it, in an element or in a quoted attribute.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// `3 of 20`, or `3` where there is no most.
struct OfMost<T>(T, Option<T>);

impl<T: Display> Display for OfMost<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self(count, Some(most)) => write!(f, "{count} of {most}"),
            Self(count, None) => write!(f, "{count}"),
        }
    }
}

/// A duration in its largest unit.
struct Coarse(Duration);

impl Display for Coarse {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0..120 => write!(f, "{seconds} s"),
            120..7_200 => write!(f, "{} min", seconds / 60),
            7_200..172_800 => write!(f, "{} h", seconds / 3_600),
            _ => write!(f, "{} d", seconds / 86_400),
        }
    }
}

fn routes(listener: &Listener, f: &mut Formatter<'_>) -> fmt::Result {
    writeln!(f, "<h2>Routes of {}</h2>", Escaped(&listener.name))?;
    f.write_str("<table>\n<tr><th>rule<th>leads to<th>sessions\n")?;
    for RouteStatus { rule, pools, refuse, sessions } in &listener.routes {
        write!(f, "<tr><td>{}<td>", Escaped(rule))?;
        match pools.as_slice() {
            [] => f.write_str(if *refuse { "refused" } else { "-" })?,
            [one] => write!(f, "{}", Escaped(&one.pool))?,
            several => {
                let all: Vec<_> = several.iter().map(|one| format!("{} ({})", one.pool, one.weight)).collect();
                write!(f, "{}", Escaped(&all.join(", ")))?;
            }
        }
        writeln!(f, "<td class=\"number\">{sessions}")?;
    }
    f.write_str("</table>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(
            Escaped("<img src=x onerror='a(\"b\")'>&amp;").to_string(),
            "&lt;img src=x onerror=&#39;a(&quot;b&quot;)&#39;&gt;&amp;amp;"
        );
    }

    #[test]
    fn durations_are_coarse() {
        let shown = [0, 119, 120, 7_199, 7_200, 172_799, 172_800].map(|s| Coarse(Duration::from_secs(s)).to_string());
        assert_eq!(shown, ["0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 d"]);
    }
}
