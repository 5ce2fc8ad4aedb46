// pybind11: a run that is recorded, and its gradient.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <climits>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "binding/signals.hpp"
#include "dispatch.hpp"
#include "gradient/gradient.hpp"
#include "gradient/guest.hpp"
#include "gradient/orthogonal.hpp"

namespace py = pybind11;

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Bytes = py::array_t<uint8_t, py::array::c_style>;
using Numbers = py::array_t<uint32_t, py::array::c_style>;
using Shape = std::vector<py::ssize_t>;

template <class Array> Shape shape_of(const Array& array) {
    return Shape(array.shape(), array.shape() + array.ndim());
}

// Where an array's values are, which others must not change while they are read.
template <class T> const T* data_of(const py::array_t<T, py::array::c_style>& array, const char* name) {
    if (reinterpret_cast<uintptr_t>(array.data()) % alignof(T) != 0)
        throw std::invalid_argument(std::string(name) + " must be aligned to " + std::to_string(alignof(T)) +
                                    " bytes");
    return array.data();
}

// A copy: what a run was made with is needed again on its way back, whatever has become of the array.
template <class T> std::vector<T> copied(const py::array_t<T, py::array::c_style>& array, const char* name) {
    const T* data = data_of(array, name);
    return std::vector<T>(data, data + array.size());
}

// So many things, or no memory for them.
size_t product(std::initializer_list<size_t> factors) {
    size_t result = 1;
    for (const size_t factor : factors)
        if (__builtin_mul_overflow(result, factor, &result))
            throw std::bad_alloc();
    return result;
}

nca::Interrupt signals() {
    const nca::Interrupt interrupt = nca::python_signals();
    if (PyErr_Occurred())
        throw py::error_already_set();
    return interrupt;
}

// To be called with the lock of the interpreter, after a call that was interrupted or was not.
void raise_unless(bool done) {
    if (!done)
        throw py::error_already_set();
}

// Weights by name, each beside its shape.
class Weights {
  public:
    explicit Weights(const std::map<std::string, Floats>& arrays) {
        for (const auto& [name, array] : arrays)
            weights_[name] = {copied(array, name.c_str()), shape_of(array)};
    }

    nca::RuleWeights describe(const std::string& perception, const std::string& padding, int input_channels,
                              double fire_rate) const {
        const bool conv = perception == "conv";
        if (!(conv || perception == "sobel") || !(padding == "reflect" || padding == "zero"))
            throw std::invalid_argument(
                "perception must be 'sobel' or 'conv', and padding 'zero' or 'reflect'");
        const Shape fc1 = shape("fc1.weight", 2), p0 = conv ? shape("p0.weight", 4) : Shape{0, 0, 0, 3};
        // what does not fit an int is not to be taken for something that does
        const auto size = [](py::ssize_t n) { return static_cast<int>(std::min<py::ssize_t>(n, INT_MAX)); };
        nca::RuleWeights weights{};
        weights.perception = conv ? nca::Perception::conv : nca::Perception::sobel;
        weights.padding = padding == "reflect" ? nca::Padding::reflect : nca::Padding::zero;
        weights.channels = size(fc1[0]);
        weights.input_channels = input_channels;
        weights.hidden = size(fc1[1]);
        weights.kernel_size = size(p0[3]);
        weights.fire_rate = fire_rate;
        nca::check(weights);
        const py::ssize_t c = weights.channels, h = weights.hidden, k = weights.kernel_size;
        weights.fc0_weight = data("fc0.weight", {h, 3 * c});
        weights.fc0_bias = data("fc0.bias", {h});
        weights.fc1_weight = data("fc1.weight", {c, h});
        if (conv) {
            weights.p0_weight = data("p0.weight", {c, c, k, k});
            weights.p0_bias = data("p0.bias", {c});
            weights.p1_weight = data("p1.weight", {c, c, k, k});
            weights.p1_bias = data("p1.bias", {c});
        }
        return weights;
    }

    // Arrays of the same names and shapes.
    std::map<std::string, Floats> like() const {
        std::map<std::string, Floats> arrays;
        for (const auto& [name, weight] : weights_)
            arrays[name] = Floats(weight.shape);
        return arrays;
    }

  private:
    struct Weight {
        std::vector<float> values;
        Shape shape;
    };

    const Weight& at(const char* name) const {
        const auto found = weights_.find(name);
        if (found == weights_.end())
            throw std::invalid_argument(std::string("the weights miss ") + name);
        return found->second;
    }
    const Shape& shape(const char* name, size_t axes) const {
        if (at(name).shape.size() != axes)
            throw std::invalid_argument(std::string(name) + " must have " + std::to_string(axes) + " axes");
        return at(name).shape;
    }
    const float* data(const char* name, const Shape& wanted) const {
        if (at(name).shape != wanted)
            throw std::invalid_argument(std::string(name) + " does not fit fc1.weight");
        return at(name).values.data();
    }

    std::map<std::string, Weight> weights_;
};

// Steps of a rule on a batch of states, recorded. All that the way back needs is its own.
class Rollout {
  public:
    Rollout(const std::string& perception, const std::string& padding, int input_channels, double fire_rate,
            const std::map<std::string, Floats>& weights, const Floats& start,
            const std::optional<Floats>& image, int scale, int steps, const std::optional<Bytes>& masks,
            uint64_t seed, int level, const Numbers& samples, const Numbers& slices,
            const std::optional<Bytes>& wanted, int threads)
        : weights_(weights), samples_(copied(samples, "samples")), slices_(copied(slices, "slices")),
          steps_(steps), threads_(threads), scale_(scale), has_image_(image.has_value()),
          rule_(weights_.describe(perception, padding, input_channels, fire_rate)) {
        if (start.ndim() != 4 || start.shape(3) != rule_.channels || start.size() == 0)
            throw std::invalid_argument("state must be (N, H, W, " + std::to_string(rule_.channels) +
                                        "), not empty");
        if (scale < 1 || std::max(start.shape(1), start.shape(2)) > nca::kMaxSide / scale)
            throw std::invalid_argument("scale must be 1 or more, and the state it gives no larger than " +
                                        std::to_string(nca::kMaxSide) + " rows and columns");
        if (steps < 0 || steps > nca::kMaxSteps || level < 0 || level >= nca::kMaxLevels)
            throw std::invalid_argument("steps or level is out of range");
        count_ = static_cast<size_t>(start.shape(0));
        height_ = static_cast<int>(start.shape(1)) * scale;
        width_ = static_cast<int>(start.shape(2)) * scale;
        const Shape members = {start.shape(0), height_, width_};
        if (image && shape_of(*image) != members)
            throw std::invalid_argument("image must be (N, H, W)");
        if (wanted && shape_of(*wanted) != members)
            throw std::invalid_argument("wanted must be (N, H, W)");
        if (masks && shape_of(*masks) != Shape{steps, members[0], members[1], members[2]})
            throw std::invalid_argument("masks must be (steps, N, H, W)");
        if (samples_.size() != count_ || slices_.size() != count_)
            throw std::invalid_argument("samples and slices must have a number for each member of the batch");
        const size_t floats = product({count_, static_cast<size_t>(height_), static_cast<size_t>(width_),
                                       sizeof(float), static_cast<size_t>(rule_.channels)}) /
                              sizeof(float);
        if (masks)
            masks_ = copied(*masks, "masks");
        fire_ = {masks ? masks_.data() : nullptr, seed, level, samples_.data(), slices_.data()};
        state_.reset(new float[floats]);
        const nca::Start from = {data_of(start, "state"), scale, image ? data_of(*image, "image") : nullptr};
        const nca::Interrupt interrupt = signals();
        bool done = true;
        {
            const py::gil_scoped_release release;
            if (wanted) {
                reaching_.resize(product({static_cast<size_t>(steps), floats}) / rule_.channels);
                done = nca::reaching_masks(reaching_.data(), wanted->data(), rule_, count_, height_, width_,
                                           steps_, fire_, interrupt);
                fire_.masks = reaching_.data();
                masks_ = {};
            }
            if (done) {
                record_ = nca::Record(rule_, count_, steps_);
                done = nca::rollout(rule_, from, state_.get(), record_, count_, height_, width_, steps_,
                                    fire_, threads_, interrupt);
            }
        }
        raise_unless(done);
    }

    // Others point into it.
    Rollout(const Rollout&) = delete;
    Rollout& operator=(const Rollout&) = delete;

    // The last state, (N, H, W, C), read-only: the way back starts from it.
    Floats final_state() const {
        using Memory = std::shared_ptr<float[]>;
        const py::capsule owner(new Memory(state_),
                                [](void* memory) { delete static_cast<Memory*>(memory); });
        Floats view({static_cast<py::ssize_t>(count_), static_cast<py::ssize_t>(height_),
                     static_cast<py::ssize_t>(width_), static_cast<py::ssize_t>(rule_.channels)},
                    state_.get(), owner);
        view.attr("setflags")(py::arg("write") = false);
        return view;
    }

    // The gradients of the weights and of the state that the run started from, given that of the last.
    std::pair<std::map<std::string, Floats>, Floats> backward(const Floats& gradient) const {
        const auto count = static_cast<py::ssize_t>(count_);
        if (shape_of(gradient) != Shape{count, height_, width_, rule_.channels})
            throw std::invalid_argument("gradient must have the shape of the state");
        Floats of_start(Shape{count, height_ / scale_, width_ / scale_, rule_.channels});
        std::map<std::string, Floats> out = weights_.like();
        const auto at = [&](const char* name) {
            const auto found = out.find(name);
            return found == out.end() ? nullptr : found->second.mutable_data();
        };
        const nca::WeightGradients to = {at("p0.weight"),  at("p0.bias"),  at("p1.weight"), at("p1.bias"),
                                         at("fc0.weight"), at("fc0.bias"), at("fc1.weight")};
        float* of_start_data = of_start.mutable_data();
        const float* of_last = data_of(gradient, "gradient");
        const nca::Interrupt interrupt = signals();
        bool done;
        {
            const py::gil_scoped_release release;
            done = nca::backward(rule_, scale_, has_image_, state_.get(), record_, of_last, count_, height_,
                                 width_, steps_, fire_, threads_, of_start_data, to, interrupt);
        }
        raise_unless(done);
        return {std::move(out), std::move(of_start)};
    }

  private:
    const Weights weights_;
    std::vector<uint8_t> masks_;
    const std::vector<uint32_t> samples_, slices_;
    std::vector<uint8_t> reaching_; // fire masks of the cells that matter, where not all are wanted
    const int steps_, threads_, scale_;
    const bool has_image_;
    const nca::RuleWeights rule_;
    size_t count_;
    int height_, width_;
    nca::Fire fire_{};
    std::shared_ptr<float[]> state_; // the last
    nca::Record record_;
};

// What __new__ without __init__ has made holds no rollout, which pybind11 does not see.
const Rollout& made(const py::object& self) {
    if (!py::isinstance<Rollout>(self) ||
        !reinterpret_cast<py::detail::instance*>(self.ptr())->get_value_and_holder().holder_constructed())
        throw py::type_error("the rollout was never initialised");
    return self.cast<const Rollout&>();
}

Floats orthogonalized(const Floats& matrix) {
    if (matrix.ndim() != 2 || matrix.size() > INT_MAX)
        throw std::invalid_argument("matrix must be (rows, columns), of at most " + std::to_string(INT_MAX) +
                                    " numbers");
    Floats result({matrix.shape(0), matrix.shape(1)});
    float* in_place = result.mutable_data();
    std::copy_n(data_of(matrix, "matrix"), matrix.size(), in_place);
    const auto rows = static_cast<size_t>(matrix.shape(0)), columns = static_cast<size_t>(matrix.shape(1));
    const nca::Interrupt interrupt = signals();
    bool done;
    {
        const py::gil_scoped_release release;
        done = nca::orthogonalize(in_place, rows, columns, interrupt);
    }
    raise_unless(done);
    return result;
}

using Doubles = py::array_t<double, py::array::c_style>;

std::pair<Doubles, Doubles> sigmoid_and_softplus(const Doubles& x) {
    constexpr py::ssize_t kPart = 1 << 16; // between which it can be interrupted
    Doubles sigmoid(shape_of(x)), softplus(shape_of(x));
    double *first = sigmoid.mutable_data(), *second = softplus.mutable_data();
    const double* from = data_of(x, "x");
    const py::ssize_t size = x.size();
    nca::Watch watch(signals());
    {
        const py::gil_scoped_release release;
        const nca::Kernels& kernels = nca::active_kernels();
        for (py::ssize_t i = 0; i < size && !watch.stopped(); i += kPart, watch.ask())
            kernels.sigmoid_and_softplus(from + i, std::min(size - i, kPart), first + i, second + i);
    }
    raise_unless(!watch.stopped());
    return {std::move(sigmoid), std::move(softplus)};
}

} // namespace

PYBIND11_MODULE(_gradient, module) {
    module.doc() = "The gradient of a run, with the kernels and threads of pynca._core.";
    const py::capsule host = py::module_::import("pynca._core").attr("lend")();
    nca::borrow(*static_cast<const nca::Host*>(PyCapsule_GetPointer(host.ptr(), "pynca._core.host")));

    module.def("reuse_memory", &nca::reuse_memory, py::arg("more"),
               "Keep the memory of one rollout for the next; once for each True comes a False.");

    module.def("orthogonalized", &orthogonalized, py::arg("matrix").noconvert(),
               "A matrix with the same singular vectors, whose singular values are near 1.");

    module.def("sigmoid_and_softplus", &sigmoid_and_softplus, py::arg("x"),
               "1 / (1 + e^-x) and ln(1 + e^x) in float64, the same bits on every CPU.");

    py::class_<Rollout>(module, "Rollout", "Steps of a rule on a batch of states, recorded for the gradient.")
        .def(py::init<const std::string&, const std::string&, int, double,
                      const std::map<std::string, Floats>&, const Floats&, const std::optional<Floats>&, int,
                      int, const std::optional<Bytes>&, uint64_t, int, const Numbers&, const Numbers&,
                      const std::optional<Bytes>&, int>(),
             py::arg("perception"), py::arg("padding"), py::arg("input_channels"), py::arg("fire_rate"),
             py::arg("weights"), py::arg("start").noconvert(), py::arg("image").noconvert(), py::arg("scale"),
             py::arg("steps"), py::arg("masks"), py::arg("seed"), py::arg("level"), py::arg("samples"),
             py::arg("slices"), py::arg("wanted"), py::arg("threads"))
        .def_property_readonly(
            "final_state", [](const py::object& self) { return made(self).final_state(); },
            "The last state, (N, H, W, C), read-only.")
        .def(
            "backward",
            [](const py::object& self, const Floats& gradient) { return made(self).backward(gradient); },
            py::arg("gradient").noconvert(),
            "Gradients of the weights and of the state that the run started from, given that of the last.");
}
