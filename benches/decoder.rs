//! Tokens per second of the decoder, as llama-bench counts them: a prompt from an empty cache with the logits of its last
//! token, then generation token by token (fixed ids, no sampling).
//!
//!     cargo bench --bench decoder -- MODEL [--prompt 512] [--generate 64] [--threads 2] [--compute auto] [--repeat 3]

use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use lctl::kernel::{ComputeMode, Isa};
use lctl::model::{Decoder, LoadOptions, Segment, Wanted};

#[derive(Parser)]
struct Args {
    /// Checkpoint directory or GGUF file.
    model: PathBuf,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Tokens to generate.
    #[arg(long, default_value_t = 64)]
    generate: usize,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[arg(long, default_value = "auto")]
    compute: String,
    #[arg(long)]
    isa: Option<String>,
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// cargo passes it.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let mode = ComputeMode::by_name(&args.compute).ok_or("--compute: auto, f32, bf16 or int8")?;
    let mut options = LoadOptions::new(mode, args.threads);
    if let Some(name) = &args.isa {
        options.isa =
            Isa::by_name(name).filter(|isa| *isa <= Isa::detect()).ok_or("--isa: not on this machine")?;
    }
    let opened = Instant::now();
    let decoder = Decoder::open(&args.model, &options)?;
    println!("open {:.3} s", opened.elapsed().as_secs_f64());
    let token = |i: usize| (i * 7919 % decoder.config().vocab_size) as u32;
    let tokens: Vec<u32> = (0..args.prompt.max(1)).map(token).collect();
    for run in 0..=args.repeat {
        let mut cache = decoder.new_cache(usize::MAX);
        let sequence = cache.create();
        let mut next = |tokens: &[u32]| -> Result<(), Box<dyn std::error::Error>> {
            let hidden =
                decoder.forward(&mut cache, &[Segment { sequence, tokens, wanted: Wanted::Last }])?;
            decoder.logits(&hidden)?;
            Ok(())
        };
        let start = Instant::now();
        next(&tokens)?;
        let prompt = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for i in 0..args.generate {
            next(&[token(i)])?;
        }
        let generate = start.elapsed().as_secs_f64();
        let warm_up = if run == 0 { " (warm-up)" } else { "" };
        println!(
            "prompt {} {:.2} tokens/s, generate {} {:.2} tokens/s{warm_up}",
            tokens.len(),
            tokens.len() as f64 / prompt,
            args.generate,
            args.generate as f64 / generate
        );
    }
    Ok(())
}
