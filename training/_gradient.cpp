// pybind11: a run that is recorded, and its gradient.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dispatch.hpp"
#include "gradient/gradient.hpp"
#include "gradient/guest.hpp"
#include "gradient/orthogonal.hpp"

namespace py = pybind11;

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Bytes = py::array_t<uint8_t, py::array::c_style>;
using Numbers = py::array_t<uint32_t, py::array::c_style>;
using Weights = std::map<std::string, Floats>;

// Steps of a rule on a batch of states, recorded.
class Rollout {
  public:
    Rollout(const std::string& perception, const std::string& padding, int input_channels, double fire_rate,
            Weights weights, const Floats& start, const std::optional<Floats>& image, int scale, int steps,
            std::optional<Bytes> masks, uint64_t seed, int level, Numbers samples, Numbers slices,
            const std::optional<Bytes>& wanted, int threads)
        : weights_(std::move(weights)), masks_(std::move(masks)), samples_(std::move(samples)),
          slices_(std::move(slices)), steps_(steps), threads_(threads), scale_(scale),
          has_image_(image.has_value()) {
        if (start.ndim() != 4)
            throw std::invalid_argument("state must be (N, H, W, C)");
        if (scale < 1)
            throw std::invalid_argument("scale must be 1 or more");
        rule_ = describe(perception, padding, input_channels, fire_rate);
        state_ = Floats({start.shape(0), start.shape(1) * scale, start.shape(2) * scale, start.shape(3)});
        const auto* shape = state_.shape();
        check(shape);
        if (image && (image->ndim() != 3 || !std::equal(shape, shape + 3, image->shape())))
            throw std::invalid_argument("image must be (N, H, W)");
        fire_ = {masks_ ? masks_->data() : nullptr, seed, level, samples_.data(), slices_.data()};
        if (wanted && (wanted->ndim() != 3 || !std::equal(shape, shape + 3, wanted->shape())))
            throw std::invalid_argument("wanted must be (N, H, W)");
        float* in_place = state_.mutable_data();
        state_.attr("setflags")(py::arg("write") = false);
        const py::gil_scoped_release release;
        if (wanted) {
            reaching_.resize(static_cast<size_t>(steps) * wanted->size());
            nca::reaching_masks(reaching_.data(), wanted->data(), rule_, count(), height(), width(), steps_,
                                fire_);
            fire_.masks = reaching_.data();
        }
        record_ = nca::Record(rule_, count(), steps_);
        nca::rollout(rule_, {start.data(), scale, image ? image->data() : nullptr}, in_place, record_,
                     count(), height(), width(), steps_, fire_, threads_);
    }

    // The last state, (N, H, W, C), read-only: the way back starts from it.
    const Floats& final_state() const { return state_; }

    // The gradients of the weights and of the state that the run started from, given that of the last.
    std::pair<Weights, Floats> backward(const Floats& gradient) const {
        if (gradient.ndim() != 4 || !std::equal(gradient.shape(), gradient.shape() + 4, state_.shape()))
            throw std::invalid_argument("gradient must have the shape of the state");
        Floats of_start(
            {state_.shape(0), state_.shape(1) / scale_, state_.shape(2) / scale_, state_.shape(3)});
        Weights out;
        for (const auto& [name, weight] : weights_)
            out[name] = Floats(std::vector<py::ssize_t>(weight.shape(), weight.shape() + weight.ndim()));
        const auto at = [&](const char* name) {
            const auto found = out.find(name);
            return found == out.end() ? nullptr : found->second.mutable_data();
        };
        const nca::WeightGradients to = {at("p0.weight"),  at("p0.bias"),  at("p1.weight"), at("p1.bias"),
                                         at("fc0.weight"), at("fc0.bias"), at("fc1.weight")};
        float* of_start_data = of_start.mutable_data();
        {
            const py::gil_scoped_release release;
            nca::backward(rule_, scale_, has_image_, state_.data(), record_, gradient.data(), count(),
                          height(), width(), steps_, fire_, threads_, of_start_data, to);
        }
        return {std::move(out), std::move(of_start)};
    }

  private:
    size_t count() const { return static_cast<size_t>(state_.shape(0)); }
    int height() const { return static_cast<int>(state_.shape(1)); }
    int width() const { return static_cast<int>(state_.shape(2)); }

    const float* weight(const char* name) const {
        const auto found = weights_.find(name);
        return found == weights_.end() ? nullptr : found->second.data();
    }

    nca::RuleWeights describe(const std::string& perception, const std::string& padding, int input_channels,
                              double fire_rate) const {
        const bool conv = perception == "conv";
        const Floats& fc1 = weights_.at("fc1.weight");
        return {conv ? nca::Perception::conv : nca::Perception::sobel,
                padding == "reflect" ? nca::Padding::reflect : nca::Padding::zero,
                static_cast<int>(fc1.shape(0)),
                input_channels,
                static_cast<int>(fc1.shape(1)),
                conv ? static_cast<int>(weights_.at("p0.weight").shape(3)) : 3,
                fire_rate,
                weight("p0.weight"),
                weight("p0.bias"),
                weight("p1.weight"),
                weight("p1.bias"),
                weight("fc0.weight"),
                weight("fc0.bias"),
                weight("fc1.weight")};
    }

    // Sizes only: values and options are checked by pynca.Rule.
    void check(const py::ssize_t* shape) const {
        if (shape[0] < 1 || shape[1] < 1 || shape[2] < 1 || shape[3] != rule_.channels)
            throw std::invalid_argument("state must be (N, H, W, " + std::to_string(rule_.channels) +
                                        "), not empty");
        if (masks_ && (masks_->ndim() != 4 || masks_->shape(0) != steps_ ||
                       !std::equal(shape, shape + 3, masks_->shape() + 1)))
            throw std::invalid_argument("masks must be (steps, N, H, W)");
        if (samples_.size() != shape[0] || slices_.size() != shape[0])
            throw std::invalid_argument("samples and slices must have a number for each member of the batch");
    }

    Weights weights_;
    std::optional<Bytes> masks_;
    Numbers samples_, slices_;
    std::vector<uint8_t> reaching_; // fire masks of the cells that matter, where not all are wanted
    int steps_, threads_, scale_;
    bool has_image_;
    nca::RuleWeights rule_{};
    nca::Fire fire_{};
    Floats state_; // the last
    nca::Record record_;
};

Floats orthogonalized(const Floats& matrix) {
    if (matrix.ndim() != 2)
        throw std::invalid_argument("matrix must be (rows, columns)");
    Floats result({matrix.shape(0), matrix.shape(1)});
    float* in_place = result.mutable_data();
    std::copy_n(matrix.data(), matrix.size(), in_place);
    const py::gil_scoped_release release;
    nca::orthogonalize(in_place, static_cast<size_t>(matrix.shape(0)), static_cast<size_t>(matrix.shape(1)));
    return result;
}

using Doubles = py::array_t<double, py::array::c_style>;

std::pair<Doubles, Doubles> sigmoid_and_softplus(const Doubles& x) {
    const std::vector<py::ssize_t> shape(x.shape(), x.shape() + x.ndim());
    Doubles sigmoid(shape), softplus(shape);
    double *first = sigmoid.mutable_data(), *second = softplus.mutable_data();
    const py::gil_scoped_release release;
    nca::active_kernels().sigmoid_and_softplus(x.data(), x.size(), first, second);
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
        .def(py::init<const std::string&, const std::string&, int, double, Weights, const Floats&,
                      const std::optional<Floats>&, int, int, std::optional<Bytes>, uint64_t, int, Numbers,
                      Numbers, const std::optional<Bytes>&, int>(),
             py::arg("perception"), py::arg("padding"), py::arg("input_channels"), py::arg("fire_rate"),
             py::arg("weights"), py::arg("start").noconvert(), py::arg("image").noconvert(), py::arg("scale"),
             py::arg("steps"), py::arg("masks"), py::arg("seed"), py::arg("level"), py::arg("samples"),
             py::arg("slices"), py::arg("wanted"), py::arg("threads"))
        .def_property_readonly("final_state", &Rollout::final_state,
                               "The last state, (N, H, W, C), read-only.")
        .def("backward", &Rollout::backward, py::arg("gradient").noconvert(),
             "Gradients of the weights and of the state that the run started from, given that of the last.");
}
