//! The demonstration as one HTML page: it loads nothing and runs nothing.

use std::fmt::Write as _;

use super::{Done, Scored};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
:root{color-scheme:light dark}h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}\
td,th{padding:.25rem 1rem .25rem 0;text-align:left;vertical-align:top}.n{text-align:right;font-variant-numeric:tabular-nums}\
code{font:13px/1.4 ui-monospace,monospace;overflow-wrap:anywhere}meter{width:8rem}";

/// Returns the page.
pub fn html(done: &[Done], scored: &[Scored]) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>lctl demo</title><style>{STYLE}</style></head>\n\
         <body><h1>lctl demo</h1>\n<p>demo-soc asks what the model was trained for, demo-queue what the adapter taught it;\n         mean KL is how far the predictions are from those of <code>base</code>, in nats per token.</p>\n\
         <h2>Models</h2>\n<table><tr><th>model</th><th class=\"n\">KB</th><th>demo-soc</th><th>demo-queue</th><th class=\"n\">mean KL</th></tr>\n"
    );
    for row in scored {
        // writing to a String cannot fail
        let _ = writeln!(
            page,
            "<tr><td><code>{}</code></td><td class=\"n\">{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td></tr>",
            row.model,
            row.bytes / 1000,
            share(row.soc),
            share(row.queue),
            row.kld.map_or(String::new(), |kld| format!("{kld:.6}"))
        );
    }
    page += "</table>\n<h2>Gates</h2>\n<p><code>tuned-int8.gguf</code> is no worse than <code>base</code> and knows more: it passed \
             (<a href=\"gate-int8.html\">both models' answers</a>).</p>\n<p><code>tuned-int2.gguf</code> lost some of what \
             <code>base</code> knows: it was caught (<a href=\"gate-int2.html\">both models' answers</a>).</p>\n\
             <h2>Fine-tuning</h2>\n<p><a href=\"tuned/report.html\">Curves, data and recipe</a></p>\n\
             <h2>Commands</h2>\n<table><tr><th>typed in this directory</th><th class=\"n\">exit status</th><th class=\"n\">seconds</th></tr>\n";
    for Done { command, status, seconds } in done {
        let _ = writeln!(
            page,
            "<tr><td><code>{command}</code></td><td class=\"n\">{status}</td><td class=\"n\">{seconds:.1}</td></tr>"
        );
    }
    page + "</table></body></html>\n"
}

fn share(value: f64) -> String {
    let percent = 100.0 * value;
    format!("<meter value=\"{value:.4}\">{percent:.1} %</meter> {percent:.1} %")
}
