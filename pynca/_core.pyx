# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
# distutils: language = c++
"""Arrays in, one C++ call without the GIL, arrays out.

The callers in `rule.py` check arguments and say what would be right. What is checked here once more is what memory
depends on. Every call is interrupted by a signal whose handler raises, and leaves anything in what it writes then.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libcpp.memory cimport unique_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

from cpython.buffer cimport Py_buffer, PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_New
from cython.operator cimport dereference


cdef extern from * nogil:
    const char* PYNCA_VERSION
    const char* PYNCA_COMPILER
    const char* PYNCA_TARGET


cdef extern from "binding/signals.hpp" namespace "nca":
    cdef cppclass Interrupt:
        pass
    Interrupt python_signals() except *


cdef extern from "nca.hpp" namespace "nca" nogil:
    cdef enum class Perception:
        sobel
        conv

    cdef enum class Padding:
        zero
        reflect

    cdef cppclass RuleWeights:
        Perception perception
        Padding padding
        int channels, input_channels, hidden, kernel_size
        double fire_rate
        const float *p0_weight
        const float *p0_bias
        const float *p1_weight
        const float *p1_bias
        const float *fc0_weight
        const float *fc0_bias
        const float *fc1_weight

    cdef cppclass Rule:
        Rule(const RuleWeights&) except +

    cdef cppclass Fire:
        const uint8_t* masks
        uint64_t seed
        int level
        const uint32_t* samples
        const uint32_t* slices

    cdef cppclass Kernels:
        const char* name

    bint c_run "nca::run"(const Rule&, float*, size_t, int, int, int, const Fire&, int, const Interrupt&) except +
    bint c_fire_masks "nca::fire_masks"(uint8_t*, size_t, int, int, int, double, const Fire&, const Interrupt&) except +
    const vector[const Kernels*]& available_kernels() except +
    const vector[const Kernels*]& half_kernels() except +
    vector[const Kernels*] x86_kernels(unsigned, unsigned, unsigned) except +
    const Kernels& active_kernels() except +
    void select_kernels(const string&) except +
    const int kMaxSide
    const int kMaxSteps
    const int kMaxLevels
    const int kMaxSamples


cdef extern from "probe.hpp" namespace "nca" nogil:
    double c_peak_flops "nca::peak_flops"(int, double, const Interrupt&) except +


cdef extern from "host.hpp" namespace "nca" nogil:
    cdef struct Host:
        pass
    const Host& host()


MAX_STEPS = kMaxSteps
MAX_LEVELS = kMaxLevels
MAX_SAMPLES = kMaxSamples


cdef int check_address(size_t address, str name) except -1:
    if address % sizeof(float):
        raise ValueError(f"{name} must be aligned to {sizeof(float)} bytes")
    return 0


cdef const float* floats_of(dict weights, str name, tuple shape) except NULL:
    """Where the values of a C-contiguous array of float32 are; it must have this shape, which is not empty."""
    cdef Py_buffer view
    PyObject_GetBuffer(weights[name], &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
    try:
        found = tuple([view.shape[i] for i in range(view.ndim)])
        if view.format != b"f" or found != shape or 0 in shape:
            raise ValueError(f"{name} has shape {found} and format {view.format!r}; it must be {shape} and float32")
        check_address(<size_t>view.buf, name)
        return <const float*>view.buf
    finally:
        PyBuffer_Release(&view)


cdef class CompiledRule:
    """Weights packed for the instruction set that was active when this was made."""

    cdef unique_ptr[Rule] rule
    cdef readonly int channels

    # Once, unlike __init__: others may be running the rule
    def __cinit__(self, str perception not None, str padding not None, int input_channels, double fire_rate,
                  dict weights not None):
        cdef RuleWeights w
        if perception not in ("sobel", "conv") or padding not in ("zero", "reflect"):
            raise ValueError("perception must be 'sobel' or 'conv', and padding 'zero' or 'reflect'")
        c, h = memoryview(weights["fc1.weight"]).shape
        w.perception = Perception.sobel
        w.padding = Padding.reflect if padding == "reflect" else Padding.zero
        w.channels = self.channels = c
        w.input_channels = input_channels
        w.hidden = h
        w.kernel_size = 3
        w.fire_rate = fire_rate
        w.p0_weight = w.p0_bias = w.p1_weight = w.p1_bias = NULL
        w.fc0_weight = floats_of(weights, "fc0.weight", (h, 3 * c))
        w.fc0_bias = floats_of(weights, "fc0.bias", (h,))
        w.fc1_weight = floats_of(weights, "fc1.weight", (c, h))
        if perception == "conv":
            _, _, _, k = memoryview(weights["p0.weight"]).shape
            w.perception = Perception.conv
            w.kernel_size = k
            w.p0_weight = floats_of(weights, "p0.weight", (c, c, k, k))
            w.p0_bias = floats_of(weights, "p0.bias", (c,))
            w.p1_weight = floats_of(weights, "p1.weight", (c, c, k, k))
            w.p1_bias = floats_of(weights, "p1.bias", (c,))
        self.rule.reset(new Rule(w))


cdef Fire fire_of(size_t count, int steps, uint64_t seed, int level, const uint32_t[::1] samples,
                  const uint32_t[::1] slices) except *:
    cdef Fire fire
    if not 0 <= steps <= kMaxSteps or not 0 <= level < kMaxLevels:
        raise ValueError(f"steps is {steps} and level {level}; they may be {kMaxSteps} and {kMaxLevels - 1} at most")
    if <size_t>samples.shape[0] != count or <size_t>slices.shape[0] != count:
        raise ValueError("samples and slices must have a number for each member of the batch")
    fire.masks = NULL
    fire.seed = seed
    fire.level = level
    fire.samples = &samples[0] if count else NULL
    fire.slices = &slices[0] if count else NULL
    check_address(<size_t>fire.samples, "samples")
    check_address(<size_t>fire.slices, "slices")
    return fire


cdef int heard(bint done) except -1:
    """Return -1, for the exception that a handler of signals has set, where a call was not done."""
    return 0 if done else -1


def run(CompiledRule rule not None, float[:, :, :, ::1] state not None, int steps, const uint8_t[:, :, :, ::1] masks,
        uint64_t seed, int level, const uint32_t[::1] samples not None, const uint32_t[::1] slices not None,
        int threads):
    """Run in place on float32 (N, H, W, C); masks are uint8 (steps, N, H, W) or None."""
    cdef size_t count = state.shape[0]
    cdef Py_ssize_t height = state.shape[1], width = state.shape[2]
    cdef Fire fire = fire_of(count, steps, seed, level, samples, slices)
    if height > kMaxSide or width > kMaxSide:
        raise ValueError(f"state has an image of {height} x {width}; at most {kMaxSide} rows and columns are possible")
    if state.shape[3] != rule.channels:
        raise ValueError("state does not fit the rule")
    if masks is not None and (masks.shape[0] != steps or masks.shape[1] != state.shape[0]
                              or masks.shape[2] != height or masks.shape[3] != width):
        raise ValueError("masks do not fit the state")
    if count == 0 or height == 0 or width == 0 or steps == 0:
        return
    if masks is not None:
        fire.masks = &masks[0, 0, 0, 0]
    cdef float* cells = &state[0, 0, 0, 0]
    check_address(<size_t>cells, "state")
    cdef Interrupt interrupt = python_signals()
    cdef bint done
    with nogil:
        done = c_run(dereference(rule.rule), cells, count, <int>height, <int>width, steps, fire, threads, interrupt)
    heard(done)


def fire_mask(uint8_t[:, :, :, ::1] out not None, double fire_rate, uint64_t seed, int level,
              const uint32_t[::1] samples not None, const uint32_t[::1] slices not None):
    """Write the random fire masks, uint8 (steps, N, H, W)."""
    cdef Py_ssize_t steps = out.shape[0], count = out.shape[1], height = out.shape[2], width = out.shape[3]
    if not 0.0 <= fire_rate <= 1.0 or steps > kMaxSteps or height >= 2**31 or width >= 2**31:
        raise ValueError("fire_rate or the shape of out is out of range")
    cdef Fire fire = fire_of(count, <int>steps, seed, level, samples, slices)
    if steps == 0 or count == 0 or height == 0 or width == 0:
        return
    cdef uint8_t* masks = &out[0, 0, 0, 0]
    cdef Interrupt interrupt = python_signals()
    cdef bint done
    with nogil:
        done = c_fire_masks(masks, count, <int>height, <int>width, <int>steps, fire_rate, fire, interrupt)
    heard(done)


def isa():
    """Name of the instruction set in use."""
    return active_kernels().name.decode()


def available_isas():
    """Names of the instruction sets that this CPU and build have, slowest first."""
    cdef const vector[const Kernels*]* tables = &available_kernels()
    cdef size_t i
    return [dereference(tables)[i].name.decode() for i in range(tables.size())]


def half_isas():
    """Names of the instruction sets with products in half precision: never in use unless they are named."""
    cdef const vector[const Kernels*]* tables = &half_kernels()
    cdef size_t i
    return [dereference(tables)[i].name.decode() for i in range(tables.size())]


def x86_isas(unsigned features, unsigned extended, unsigned saved):
    """Names of the instruction sets of an x86-64 CPU by its words of CPUID (leaf 1's ecx, leaf 7's ebx) and XCR0."""
    return [table.name.decode() for table in x86_kernels(features, extended, saved)]


def select_isa(name):
    """Use the named instruction set for rules packed from now on; None for the fastest."""
    cdef string wanted = b"" if name is None else name.encode()
    select_kernels(wanted)


def peak_flops(int threads=1, double seconds=0.1):
    """Floating-point operations a second that the active kernels reach in registers alone; two a multiply-add."""
    cdef double result
    cdef Interrupt interrupt = python_signals()
    with nogil:
        result = c_peak_flops(threads, seconds, interrupt)
    heard(result >= 0)
    return result


def build_info():
    """Version, compiler and target of this build."""
    return {
        "version": PYNCA_VERSION.decode(),
        "compiler": PYNCA_COMPILER.decode(),
        "target": PYNCA_TARGET.decode(),
    }


def lend():
    """Kernels and threads of this module, as a capsule for `pynca.training._gradient`."""
    active_kernels()  # raises where PYNCA_ISA names none that there is
    return PyCapsule_New(<void*>&host(), b"pynca._core.host", NULL)
