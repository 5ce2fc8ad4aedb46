# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
# distutils: language = c++
"""Arrays in, one C++ call without the GIL, arrays out. Arguments are checked by the callers in `rule.py`."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libcpp.memory cimport unique_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

from cpython.pycapsule cimport PyCapsule_New
from cython.operator cimport dereference


cdef extern from * nogil:
    const char* PYNCA_VERSION
    const char* PYNCA_COMPILER
    const char* PYNCA_TARGET


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

    void c_run "nca::run"(const Rule&, float*, size_t, int, int, int, const Fire&, int) except +
    void c_fire_masks "nca::fire_masks"(uint8_t*, size_t, int, int, int, double, const Fire&) except +
    const vector[const Kernels*]& available_kernels() except +
    const vector[const Kernels*]& half_kernels() except +
    const Kernels& active_kernels() except +
    void select_kernels(const string&) except +
    const int kMaxSteps
    const int kMaxLevels
    const int kMaxSamples


cdef extern from "probe.hpp" namespace "nca" nogil:
    double c_peak_flops "nca::peak_flops"(int, double) except +


cdef extern from "host.hpp" namespace "nca" nogil:
    cdef struct Host:
        pass
    const Host& host()


MAX_STEPS = kMaxSteps
MAX_LEVELS = kMaxLevels
MAX_SAMPLES = kMaxSamples


cdef class CompiledRule:
    """Weights packed for the instruction set that was active when this was made."""

    cdef unique_ptr[Rule] rule
    cdef readonly int channels

    def __init__(self, str perception, str padding, int input_channels, double fire_rate, dict weights):
        cdef RuleWeights w
        cdef const float[:, ::1] fc0 = weights["fc0.weight"]
        cdef const float[::1] fc0_bias = weights["fc0.bias"]
        cdef const float[:, ::1] fc1 = weights["fc1.weight"]
        cdef const float[:, :, :, ::1] p0, p1
        cdef const float[::1] p0_bias, p1_bias
        w.perception = Perception.sobel
        w.padding = Padding.reflect if padding == "reflect" else Padding.zero
        w.channels = self.channels = <int>fc1.shape[0]
        w.input_channels = input_channels
        w.hidden = <int>fc1.shape[1]
        w.kernel_size = 3
        w.fire_rate = fire_rate
        w.p0_weight = w.p0_bias = w.p1_weight = w.p1_bias = NULL
        w.fc0_weight = &fc0[0, 0]
        w.fc0_bias = &fc0_bias[0]
        w.fc1_weight = &fc1[0, 0]
        if perception == "conv":
            p0, p0_bias = weights["p0.weight"], weights["p0.bias"]
            p1, p1_bias = weights["p1.weight"], weights["p1.bias"]
            w.perception = Perception.conv
            w.kernel_size = <int>p0.shape[3]
            w.p0_weight, w.p0_bias = &p0[0, 0, 0, 0], &p0_bias[0]
            w.p1_weight, w.p1_bias = &p1[0, 0, 0, 0], &p1_bias[0]
        self.rule.reset(new Rule(w))


cdef Fire fire_of(uint64_t seed, int level, const uint32_t[::1] samples, const uint32_t[::1] slices):
    cdef Fire fire
    fire.masks = NULL
    fire.seed = seed
    fire.level = level
    fire.samples = &samples[0] if samples.shape[0] else NULL
    fire.slices = &slices[0] if slices.shape[0] else NULL
    return fire


def run(CompiledRule rule not None, float[:, :, :, ::1] state, int steps, const uint8_t[:, :, :, ::1] masks,
        uint64_t seed, int level, const uint32_t[::1] samples, const uint32_t[::1] slices, int threads):
    """Run in place on float32 (N, H, W, C); masks are uint8 (steps, N, H, W) or None."""
    if rule.rule.get() == NULL:
        raise ValueError("the rule was never initialised")
    cdef size_t count = state.shape[0]
    cdef Py_ssize_t height = state.shape[1], width = state.shape[2]
    cdef Fire fire = fire_of(seed, level, samples, slices)
    if height > 2**30 or width > 2**30:
        raise ValueError(f"state has an image of {height} x {width}; at most {2**30} rows and columns are possible")
    if state.shape[3] != rule.channels or <size_t>samples.shape[0] != count or <size_t>slices.shape[0] != count:
        raise ValueError("state, samples and slices do not fit the rule")
    if masks is not None and (masks.shape[0] != steps or masks.shape[1] != state.shape[0]
                              or masks.shape[2] != height or masks.shape[3] != width):
        raise ValueError("masks do not fit the state")
    if count == 0 or height == 0 or width == 0 or steps == 0:
        return
    if masks is not None:
        fire.masks = &masks[0, 0, 0, 0]
    cdef float* cells = &state[0, 0, 0, 0]
    with nogil:
        c_run(dereference(rule.rule), cells, count, <int>height, <int>width, steps, fire, threads)


def fire_mask(uint8_t[:, :, :, ::1] out, double fire_rate, uint64_t seed, int level,
              const uint32_t[::1] samples, const uint32_t[::1] slices):
    """Write the random fire masks, uint8 (steps, N, H, W)."""
    cdef Fire fire = fire_of(seed, level, samples, slices)
    cdef size_t count = out.shape[1]
    cdef int steps = <int>out.shape[0], height = <int>out.shape[2], width = <int>out.shape[3]
    if steps == 0 or count == 0 or height == 0 or width == 0:
        return
    cdef uint8_t* masks = &out[0, 0, 0, 0]
    with nogil:
        c_fire_masks(masks, count, height, width, steps, fire_rate, fire)


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


def select_isa(name):
    """Use the named instruction set for rules packed from now on; None for the fastest."""
    cdef string wanted = b"" if name is None else name.encode()
    select_kernels(wanted)


def peak_flops(int threads=1, double seconds=0.1):
    """Floating-point operations a second that the active kernels reach in registers alone; two a multiply-add."""
    cdef double result
    with nogil:
        result = c_peak_flops(threads, seconds)
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
