//! Records the commit, and compiles `kernels/`: with nvcc for GPUs, with the C++ compiler for the emulator. Either
//! compiler may be missing: the build then prints one warning and goes without. Without the feature `emulator`, nothing
//! is compiled for it.
//!
//! Environment: `NVCC` (a path; `none` skips GPU kernels), `CUDA_HOME`, `PATH` to find nvcc; `ALCHEMIST_CUDA_ARCHS`
//! (default `80,90a`, and PTX for newer GPUs); `ALCHEMIST_KERNEL_TABLE=1` prints registers, shared memory, stack and
//! spills of every kernel; `ALCHEMIST_CANARY=1` adds the kernels with planted defects to the GPU build.

use std::{
    collections::hash_map::DefaultHasher,
    env,
    ffi::OsString,
    fmt,
    fmt::Write as _,
    fs,
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

/// Architectures that get machine code.
const ARCHITECTURES: &str = "80,90a";
/// PTX for later architectures targets this one: code for architectures with an `a` is not forward compatible.
const PTX: &str = "90";

/// A message that is printed verbatim, even by `Debug`.
struct Message(String);

impl fmt::Debug for Message {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl From<String> for Message {
    fn from(message: String) -> Self {
        Self(message)
    }
}

type Result<T> = std::result::Result<T, Message>;

/// Adds context to an error.
fn during<E: fmt::Display>(what: impl fmt::Display) -> impl FnOnce(E) -> Message {
    move |error| Message(format!("{what}: {error}"))
}

fn main() -> Result<()> {
    say("rerun-if-changed=build.rs");
    say("rustc-check-cfg=cfg(emulator)");
    record_commit();
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?).join("kernels");
    fs::create_dir_all(&out).map_err(during(out.display()))?;
    for name in ["NVCC", "CUDA_HOME", "ALCHEMIST_CUDA_ARCHS", "ALCHEMIST_KERNEL_TABLE", "ALCHEMIST_CANARY"] {
        say(format_args!("rerun-if-env-changed={name}"));
    }
    let sources = Sources::find(&root)?;
    build_for_gpus(&sources, &out)?;
    #[cfg(feature = "emulator")]
    build_for_emulator(&sources, &out)?;
    Ok(())
}

/// Prints an instruction to cargo.
fn say(line: impl fmt::Display) {
    println!("cargo::{line}");
}

fn variable(name: &str) -> Result<OsString> {
    env::var_os(name).ok_or_else(|| Message(format!("cargo did not set {name}")))
}

fn record_commit() {
    say("rerun-if-changed=.git/HEAD");
    say("rerun-if-changed=.git/logs/HEAD");
    let hash = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or_else(|| "unknown".to_owned(), |hash| hash.trim().to_owned());
    say(format_args!("rustc-env=ALCHEMIST_GIT_HASH={hash}"));
}

/// Kernels with planted defects, which test the checking tools. They are part of the GPU build only with
/// `ALCHEMIST_CANARY=1`, as in `scripts/gpu.sh pack`.
const CANARY: &str = "kernels/canary.cu";

/// The files of `kernels/`.
struct Sources {
    root: PathBuf,
    /// Kernels for GPUs and emulator, as `kernels/<stem>.cu`.
    kernels: Vec<PathBuf>,
    /// Sources of the emulator only.
    #[cfg_attr(not(feature = "emulator"), expect(dead_code, reason = "there is no emulator"))]
    host: Vec<PathBuf>,
    /// A hash of all headers: a change to one rebuilds everything.
    headers: u64,
}

impl Sources {
    fn find(root: &Path) -> Result<Self> {
        let (mut kernels, mut host, mut headers) = (Vec::new(), Vec::new(), DefaultHasher::new());
        say("rerun-if-changed=kernels");
        for folder in ["kernels", "kernels/host"] {
            let list = fs::read_dir(root.join(folder)).map_err(during(folder))?;
            let mut names = list
                .map(|entry| Ok(Path::new(folder).join(entry.map_err(during(folder))?.file_name())))
                .collect::<Result<Vec<_>>>()?;
            names.sort();
            for name in names {
                say(format_args!("rerun-if-changed={}", name.display()));
                match name.extension().and_then(|extension| extension.to_str()) {
                    Some("cu") if folder == "kernels" => kernels.push(name),
                    Some("cu" | "cpp") => host.push(name),
                    Some("cuh" | "h") => read(&root.join(&name))?.hash(&mut headers),
                    _ => (),
                }
            }
        }
        Ok(Self { root: root.to_path_buf(), kernels, host, headers: headers.finish() })
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(during(path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(during(path.display()))
}

/// `kernels/adamw.cu` is `adamw`.
fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// One run of a compiler.
struct Job {
    command: Command,
    source: PathBuf,
    object: PathBuf,
}

impl Job {
    /// A hash of everything that the result depends on.
    fn key(&self, sources: &Sources) -> Result<String> {
        let mut hasher = DefaultHasher::new();
        (sources.headers, format!("{:?}", self.command)).hash(&mut hasher);
        let path =
            if self.source.is_absolute() { self.source.clone() } else { sources.root.join(&self.source) };
        read(&path)?.hash(&mut hasher);
        Ok(format!("{:016x}", hasher.finish()))
    }

    /// Compiles unless the object is up to date; returns the compiler's output.
    fn run(mut self, sources: &Sources) -> Result<String> {
        let (key, messages) = (self.object.with_extension("key"), self.object.with_extension("log"));
        let now = self.key(sources)?;
        if self.object.exists() && fs::read_to_string(&key).is_ok_and(|before| before == now) {
            return fs::read_to_string(&messages).map_err(during(messages.display()));
        }
        let output =
            self.command.current_dir(&sources.root).output().map_err(during("starting a compiler"))?;
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            return Err(Message(format!("{} does not compile:\n{said}", self.source.display())));
        }
        write(&messages, &said)?;
        write(&key, &now)?;
        Ok(said)
    }
}

/// Runs all jobs, as many in parallel as cargo allows; returns the first error in the order of the jobs.
fn run_all(jobs: Vec<Job>, sources: &Sources) -> Result<Vec<String>> {
    let workers = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1usize);
    let results = Mutex::new(Vec::new());
    let queue = Mutex::new(jobs.into_iter().enumerate());
    std::thread::scope(|scope| {
        for _ in 0..workers.max(1) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().ok().and_then(|mut queue| queue.next());
                    let Some((at, job)) = next else { break };
                    let result = job.run(sources);
                    if let Ok(mut results) = results.lock() {
                        results.push((at, result));
                    }
                }
            });
        }
    });
    let mut results = results.into_inner().map_err(during("compiling kernels"))?;
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The path of nvcc, or why there is none.
fn find_nvcc() -> std::result::Result<PathBuf, String> {
    let file = format!("nvcc{}", env::consts::EXE_SUFFIX);
    if let Some(path) = env::var_os("NVCC").filter(|path| !path.is_empty()) {
        if path == "none" {
            return Err("NVCC is `none`".to_owned());
        }
        return Ok(path.into());
    }
    let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    home.into_iter()
        .chain(env::split_paths(&path))
        .map(|folder| folder.join(&file))
        .find(|nvcc| nvcc.is_file())
        .ok_or_else(|| "nvcc was not found (NVCC, CUDA_HOME/bin, PATH)".to_owned())
}

/// Compiles every kernel file to a fatbin, and writes the table of them that `src/engine/cuda/gpu/kernels.rs` includes.
fn build_for_gpus(sources: &Sources, out: &Path) -> Result<()> {
    let table = out.join("fatbins.rs");
    let nvcc = match find_nvcc() {
        Ok(nvcc) => nvcc,
        Err(reason) => {
            say(format_args!("warning={reason}: the program is built without the GPU device"));
            return write(&table, &format!("Err({reason:?})"));
        }
    };
    let architectures = env::var("ALCHEMIST_CUDA_ARCHS").unwrap_or_else(|_| ARCHITECTURES.to_owned());
    let version = Command::new(&nvcc).arg("--version").output().map_err(during(nvcc.display()))?;
    let with_canary = env::var("ALCHEMIST_CANARY").is_ok_and(|value| value == "1");
    let kernels: Vec<&PathBuf> =
        sources.kernels.iter().filter(|source| with_canary || *source != Path::new(CANARY)).collect();
    let mut jobs = Vec::new();
    for &source in &kernels {
        let object = out.join(stem(source)).with_extension("fatbin");
        let mut command = Command::new(&nvcc);
        command.args(["-O3", "-std=c++17", "-lineinfo", "-Xptxas", "-v", "-fatbin"]);
        for architecture in architectures.split(',').map(str::trim) {
            command.arg("-gencode").arg(format!("arch=compute_{architecture},code=sm_{architecture}"));
        }
        command.arg("-gencode").arg(format!("arch=compute_{PTX},code=compute_{PTX}"));
        // The version is part of the key, so that a new toolkit under the same path is noticed.
        command.env("ALCHEMIST_NVCC_VERSION", String::from_utf8_lossy(&version.stdout).trim());
        command.arg(source).arg("-o").arg(&object);
        jobs.push(Job { command, source: source.clone(), object });
    }
    let said = run_all(jobs, sources)?;
    let usage: Vec<Usage> = said.iter().flat_map(|said| Usage::parse(said)).collect();
    write(&out.join("table.txt"), &usage_table(&usage))?;
    if env::var("ALCHEMIST_KERNEL_TABLE").is_ok_and(|value| value == "1") {
        for line in usage_table(&usage).lines() {
            say(format_args!("warning={line}"));
        }
    }
    refuse_spills(sources, &usage)?;
    let mut text = "Ok(&[".to_owned();
    for source in kernels {
        let name = stem(source);
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "({name:?}, &Aligned(*include_bytes!(concat!(env!(\"OUT_DIR\"), \"/kernels/{name}.fatbin\")))),"
        );
    }
    write(&table, &(text + "])"))
}

/// ptxas' report on one kernel on one architecture.
#[derive(Debug, Default, PartialEq)]
struct Usage {
    kernel: String,
    architecture: String,
    registers: u32,
    shared_bytes: u32,
    stack_bytes: u32,
    spill_bytes: u32,
}

impl Usage {
    /// Parses the output of `-Xptxas -v`.
    fn parse(said: &str) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        for line in said.lines() {
            if let Some((_, rest)) = line.split_once("Compiling entry function '") {
                let mut parts = rest.split('\'');
                let kernel = parts.next().unwrap_or_default().to_owned();
                let architecture = parts.nth(1).unwrap_or_default().to_owned();
                found.push(Self { kernel, architecture, ..Self::default() });
            }
            let Some(last) = found.last_mut() else { continue };
            let before = |what: &str| -> Option<u32> {
                line[..line.find(what)?].trim_end().rsplit([' ', ',']).next()?.parse().ok()
            };
            last.registers = before("registers").unwrap_or(last.registers);
            last.shared_bytes = before("bytes smem").unwrap_or(last.shared_bytes);
            last.stack_bytes = before("bytes stack frame").unwrap_or(last.stack_bytes);
            last.spill_bytes +=
                before("bytes spill stores").unwrap_or(0) + before("bytes spill loads").unwrap_or(0);
        }
        found.sort_by(|left, right| {
            (&left.kernel, &left.architecture).cmp(&(&right.kernel, &right.architecture))
        });
        found
    }
}

fn usage_table(kernels: &[Usage]) -> String {
    let mut text = format!(
        "{:<40} {:>8} {:>9} {:>7} {:>6} {:>6}\n",
        "kernel", "target", "registers", "shared", "stack", "spill"
    );
    for usage in kernels {
        let _ = writeln!(
            text,
            "{:<40} {:>8} {:>9} {:>7} {:>6} {:>6}",
            usage.kernel,
            usage.architecture,
            usage.registers,
            usage.shared_bytes,
            usage.stack_bytes,
            usage.spill_bytes
        );
    }
    text
}

/// Refuses spills and stack frames except those that `kernels/spills.txt` allows, each with its reason.
fn refuse_spills(sources: &Sources, kernels: &[Usage]) -> Result<()> {
    let path = sources.root.join("kernels/spills.txt");
    let list = fs::read_to_string(&path).map_err(during(path.display()))?;
    let allowed: Vec<&str> = list.lines().filter(|line| !line.starts_with('#')).collect();
    let is_allowed = |usage: &Usage| {
        allowed.iter().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(&usage.kernel)
                && words.next() == Some(&usage.architecture)
                && words.next().is_some()
        })
    };
    let refused: Vec<String> = kernels
        .iter()
        .filter(|usage| usage.stack_bytes + usage.spill_bytes > 0 && !is_allowed(usage))
        .map(|usage| {
            let Usage { kernel, architecture, stack_bytes, spill_bytes, .. } = usage;
            format!("{kernel} on {architecture}: {stack_bytes} bytes of stack, {spill_bytes} bytes spilled")
        })
        .collect();
    if refused.is_empty() {
        return Ok(());
    }
    Err(Message(format!(
        "kernels may not spill or use a stack frame unless kernels/spills.txt gives the reason:\n{}",
        refused.join("\n")
    )))
}

/// Compiles the emulator and every kernel for it. Without a suitable C++ compiler there is no emulator.
#[cfg(feature = "emulator")]
fn build_for_emulator(sources: &Sources, out: &Path) -> Result<()> {
    let without = |reason: &str| {
        say(format_args!("warning={reason}: the program is built without the emulated device"));
        Ok(())
    };
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system != "linux") {
        return without("the emulator of kernels runs on Linux only");
    }
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .cpp_link_stdlib(None)
        .std("c++17")
        .opt_level(2)
        .debug(false)
        .warnings(true)
        .extra_warnings(true);
    build.flag("-g1").flag("-fno-exceptions").flag("-fno-rtti").flag("-fno-threadsafe-statics");
    build.flag(format!("-ffile-prefix-map={}=.", sources.root.display())).cargo_warnings(false);
    let Ok(compiler) = build.try_get_compiler() else { return without("no C++ compiler was found") };
    let registry = out.join("registry.cpp");
    write_registry(sources, &registry)?;
    let job = |source: &Path, watched: bool| {
        let mut object = out.join(stem(source)).into_os_string();
        object.push(".host.o");
        let object = PathBuf::from(object);
        let mut command = compiler.to_command();
        if watched {
            // Instruments every memory access with a call to the emulator. Loops must stay as written: some would turn
            // into memcpy and memset, which are not instrumented.
            command.args(["-fsanitize=thread", "-fsanitize=alignment,bounds", "-fno-tree-vectorize"]);
            command.arg("-fno-tree-loop-distribute-patterns");
            command.args(["-Wno-unknown-pragmas", "-x", "c++", "-I", "kernels"]);
            command.arg(format!("-DEMULATOR_FILE=emulator_file_{}", stem(source)));
        }
        command.arg("-c").arg(source).arg("-o").arg(&object);
        Job { command, source: source.to_path_buf(), object }
    };
    // The smallest file tests whether the compiler supports this; an error in any other is a bug in our source.
    if job(&registry, true).run(sources).is_err() {
        return without("no C++ compiler with -fsanitize=thread was found");
    }
    let is_kernel = |path: &Path| path.extension().is_some_and(|extension| extension == "cu");
    let files = sources.kernels.iter().chain(&sources.host);
    let jobs: Vec<Job> = files.map(|path| job(path, is_kernel(path))).collect();
    let objects: Vec<PathBuf> = jobs.iter().map(|job| job.object.clone()).collect();
    run_all(jobs, sources)?;
    let mut archive = cc::Build::new();
    archive.cpp(true).cpp_link_stdlib(None).cargo_warnings(false).object(out.join("registry.host.o"));
    archive.objects(objects).try_compile("alchemist_emulator").map_err(during("archiving the emulator"))?;
    say("rustc-cfg=emulator");
    Ok(())
}

/// References each kernel file, so that the linker drops none.
#[cfg(feature = "emulator")]
fn write_registry(sources: &Sources, path: &Path) -> Result<()> {
    let names: Vec<String> = sources
        .kernels
        .iter()
        .chain(&sources.host)
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .map(|path| format!("emulator_file_{}", stem(path)))
        .collect();
    let mut text = "extern \"C\" {\n".to_owned();
    for name in &names {
        let _ = writeln!(text, "extern const char {name};");
    }
    let list: Vec<String> = names.iter().map(|name| format!("&{name}")).collect();
    let _ =
        writeln!(text, "extern const char *const emulator_files[] = {{{}, nullptr}};\n}}", list.join(", "));
    write(path, &text)
}
