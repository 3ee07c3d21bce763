//! The prover: `Prover`, a model with its commitment, and what reads and checks cards and proofs. Cards and statements cross the border as their canonical
//! JSON, tensors as bytes of little-endian int32, what the prover reports as JSON.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{channel, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use mamba_integer_prover::generation::{self, Registered};
use mamba_integer_prover::plan::Plan;
use mamba_integer_prover::shape::{Model, ModelShape};
use mamba_integer_prover::statement::{from_hex, hex, Card, Statement};
use mamba_integer_prover::{field, pcs, registration, segment, soundness, Error};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use crate::error::{argument_error, from_prover, proof_error};

/// How often the interpreter's signals are looked for, and `report(None)` called, while the prover works.
const TICK: Duration = Duration::from_millis(100);

#[pyclass(frozen, module = "mamba_integer._native")]
pub struct Prover {
    inner: Arc<Registered>,
}

#[pymethods]
impl Prover {
    /// Checks all values and commits to the weights. `threads`: 0 is as many as there are cores.
    #[new]
    #[pyo3(signature = (shape, tensors, name, model_digest, tokenizer, threads=0))]
    fn new(
        py: Python<'_>,
        shape: &str,
        tensors: HashMap<String, PyBackedBytes>,
        name: String,
        model_digest: String,
        tokenizer: String,
        threads: usize,
    ) -> PyResult<Self> {
        let model = model(py, shape, tensors)?;
        let inner = attended(py, threads, None, move |_| {
            Registered::new(&model, &name, &model_digest, &tokenizer)
        })?;
        Ok(Self { inner: Arc::new(inner) })
    }

    fn card<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.inner.card.to_bytes())
    }

    /// The registration: the proof that the weights are within the bounds that every circuit takes for granted.
    #[pyo3(signature = (threads=0))]
    fn register<'py>(&self, py: Python<'py>, threads: usize) -> PyResult<Bound<'py, PyBytes>> {
        let registered = Arc::clone(&self.inner);
        let proof = attended(py, threads, None, move |_| registration::prove(&registered))?;
        Ok(PyBytes::new(py, &proof))
    }

    /// Proves a statement; `report` is called with JSON after each segment, and with None from time to time. An exception in it, or an interrupt, ends the
    /// call at once and the work after the segment under way. `parts`: a folder where finished segments are kept, and looked for.
    #[pyo3(signature = (statement, parts=None, threads=0, report=None))]
    fn prove<'py>(
        &self,
        py: Python<'py>,
        statement: &[u8],
        parts: Option<PathBuf>,
        threads: usize,
        report: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let registered = Arc::clone(&self.inner);
        let statement = Statement::parse(statement).map_err(|e| from_prover(py, e))?;
        let proof = attended(py, threads, report, move |say| {
            generation::prove(&registered, &statement, parts.as_deref(), &mut |progress| {
                say(serde_json::to_string(progress).expect("plain data"));
            })
        })?;
        Ok(PyBytes::new(py, &proof))
    }
}

/// ProofError if a registration does not hold for the model with this commitment.
#[pyfunction]
pub fn verify_registration(py: Python<'_>, registration: &[u8], commitment: &str) -> PyResult<()> {
    let Some(commitment) = from_hex(commitment) else {
        return Err(argument_error(py, "a commitment is 64 lowercase hexadecimal digits"));
    };
    let verified = py.detach(|| guarded(|| registration::verify(registration, &commitment)));
    result(py, verified)?;
    Ok(())
}

/// ProofError, which names the cause, if no circuit can be built for the model.
#[pyfunction]
pub fn check_provable(py: Python<'_>, shape: &str, tensors: HashMap<String, PyBackedBytes>) -> PyResult<()> {
    model(py, shape, tensors).map(drop)
}

/// Commitment of a card, as 64 hexadecimal digits. ProofError if it is not one.
#[pyfunction]
pub fn read_card(py: Python<'_>, card: &[u8]) -> PyResult<String> {
    let card = Card::parse(card).map_err(|e| from_prover(py, e))?;
    Ok(hex(&card.commitment()))
}

/// Statement and card in a proof file, unverified. ProofError if it is not one.
#[pyfunction]
pub fn read_proof<'py>(py: Python<'py>, proof: &[u8]) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
    let claimed = py.detach(|| generation::read(proof)).map_err(|e| from_prover(py, e))?;
    Ok((
        PyBytes::new(py, &claimed.statement.to_bytes()),
        PyBytes::new(py, &claimed.card.to_bytes()),
    ))
}

/// Bits of security of a proof that holds for the model with this commitment. ProofError, which says why, if it does not hold.
#[pyfunction]
pub fn verify_proof(py: Python<'_>, proof: &[u8], commitment: &str) -> PyResult<f64> {
    let Some(commitment) = from_hex(commitment) else {
        return Err(argument_error(py, "a commitment is 64 lowercase hexadecimal digits"));
    };
    let verified = py.detach(|| guarded(|| generation::verify(proof, &commitment)));
    Ok(result(py, verified)?.bits)
}

/// log2 of the steps of each segment that `steps` steps are proven in, none longer than 2^longest.
#[pyfunction]
pub fn plan_segments(steps: usize, longest: u8) -> Vec<u8> {
    generation::plan_segments(steps, longest)
}

/// What a proof will consist of: for each segment its committed cells and the leaves of its lookups, and the bits of security.
#[pyfunction]
pub fn proof_size(py: Python<'_>, card: &[u8], statement: &[u8]) -> PyResult<(Vec<(usize, usize)>, f64)> {
    let size = || {
        let (card, statement) = (Card::parse(card)?, Statement::parse(statement)?);
        let circuits = generation::circuits(&statement, &card)?;
        let sizes = circuits.iter().map(|circuit| {
            let shape = segment::trace_shape(circuit);
            let cells = shape.log_heights.iter().map(|&log| 1usize << log).sum();
            (cells, 1 << Plan::new(circuit).log_leaves)
        });
        Ok((sizes.collect(), soundness::bits(&circuits, &card)?))
    };
    let size = py.detach(|| guarded(size));
    result(py, size)
}

/// Seconds that a commitment to 2^log_cells cells takes: how fast this machine is now.
#[pyfunction]
pub fn commit_seconds(py: Python<'_>, log_cells: u8, threads: usize) -> PyResult<f64> {
    attended(py, threads, None, move |_| {
        let shape = pcs::Shape {
            log_heights: vec![log_cells],
        };
        let values: Vec<field::F> = (0..1i64 << log_cells).map(|i| field::f(i * i)).collect();
        let began = Instant::now();
        pcs::commit(&shape, vec![values])?;
        Ok(began.elapsed().as_secs_f64())
    })
}

fn model(py: Python<'_>, shape: &str, tensors: HashMap<String, PyBackedBytes>) -> PyResult<Model> {
    let model = py.detach(|| {
        let shape: ModelShape = serde_json::from_str(shape).map_err(|e| format!("shape: {e}"))?;
        let ints = |bytes: &[u8]| match bytes.chunks_exact(4) {
            chunks if chunks.remainder().is_empty() => Ok(chunks
                .map(|b| i32::from_le_bytes(b.try_into().expect("four bytes")))
                .collect()),
            _ => Err("a tensor is not int32".to_owned()),
        };
        let tensors = tensors
            .iter()
            .map(|(name, bytes)| Ok((name.clone(), ints(bytes)?)))
            .collect::<Result<HashMap<String, Vec<i32>>, String>>()?;
        Model::new(shape, tensors)
    });
    model.map_err(|e| proof_error(py, e))
}

// ---- work in the background ----------------------------------------------------------------------------------------

type Caught<T> = Result<Result<T, Error>, String>;

/// The call was given up: what unwinds the work then.
struct Abandoned;

enum Message<T> {
    Report(String),
    Done(Caught<T>),
}

/// Sets its flag when it goes.
struct Leave(Arc<AtomicBool>);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` on a pool of its own while this thread listens, to what `work` says and to interrupts. On an interrupt or an exception in `report` it
/// returns at once; `work` ends when it next says something, or with the process.
fn attended<T: Send + 'static>(
    py: Python<'_>,
    threads: usize,
    report: Option<Bound<'_, PyAny>>,
    work: impl FnOnce(&dyn Fn(String)) -> Result<T, Error> + Send + 'static,
) -> PyResult<T> {
    let failed = |what: String| proof_error(py, format!("cannot start threads: {what}"));
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| failed(e.to_string()))?;
    let leave = Leave(Arc::new(AtomicBool::new(false)));
    let abandoned = Arc::clone(&leave.0);
    let (sender, receiver) = channel::<Message<T>>();
    let body = move || {
        let sender: Sender<Message<T>> = sender;
        let say = |text: String| {
            if abandoned.load(Ordering::Relaxed) {
                resume_unwind(Box::new(Abandoned));
            }
            // If nobody listens any more, the next call unwinds.
            let _ = sender.send(Message::Report(text));
        };
        let done = guarded(|| work(&say));
        let _ = sender.send(Message::Done(done));
    };
    std::thread::Builder::new()
        .name("mamba-integer-prover".into())
        .spawn(move || pool.install(body))
        .map_err(|e| failed(e.to_string()))?;
    let receiver = Mutex::new(receiver);
    let next = || receiver.lock().expect("one listener").recv_timeout(TICK);
    loop {
        let message = py.detach(next);
        py.check_signals()?;
        match message {
            Ok(Message::Done(done)) => return result(py, done),
            Ok(Message::Report(text)) => {
                if let Some(report) = &report {
                    report.call1((text,))?;
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some(report) = &report {
                    report.call1((py.None(),))?;
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Err(proof_error(py, "the prover's thread ended".into())),
        }
    }
}

/// How many calls are under way whose panics are reported as errors, and so not printed.
static GUARDED: AtomicUsize = AtomicUsize::new(0);
static HOOK: Once = Once::new();

/// A panic in `action`, as its message.
fn guarded<T>(action: impl FnOnce() -> T) -> Result<T, String> {
    HOOK.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if GUARDED.load(Ordering::Relaxed) == 0 {
                print(info);
            }
        }));
    });
    GUARDED.fetch_add(1, Ordering::Relaxed);
    let done = catch_unwind(AssertUnwindSafe(action));
    GUARDED.fetch_sub(1, Ordering::Relaxed);
    done.map_err(|payload: Box<dyn Any + Send>| {
        let text = payload.downcast_ref::<&str>().map(ToString::to_string);
        text.or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".into())
    })
}

fn result<T>(py: Python<'_>, done: Caught<T>) -> PyResult<T> {
    match done {
        Ok(done) => done.map_err(|e| from_prover(py, e)),
        Err(panic) => Err(proof_error(py, format!("internal error: {panic}"))),
    }
}
