#include "gradient.hpp"

#include <algorithm>
#include <atomic>
#include <vector>

#include "../parallel.hpp"
#include "../sweep.hpp"

namespace nca {

namespace {

// Weight gradients are summed over the members n, n + kSlots, ... of a slot, then over slots: in an order
// that does not depend on threads. More threads than slots find no work.
constexpr size_t kSlots = 16;

// A matrix of sums with rows padded to whole registers.
struct Sums {
    int rows = 0, columns = 0, stride = 0;
    Buffer data;

    Sums() = default;
    Sums(const Kernels& kernels, int rows, int columns)
        : rows(rows), columns(columns), stride(round_up(columns, kernels.width)),
          data(static_cast<size_t>(rows) * stride) {}

    const float* row(int m) const { return data.data() + static_cast<size_t>(m) * stride; }
    void add(const Sums& other) const {
        for (size_t i = 0; i < static_cast<size_t>(rows) * stride; ++i)
            data.data()[i] += other.data.data()[i];
    }
};

// What a slot sums. Perception's outputs are [p0, p1], its inputs (tap, channel).
struct Slot {
    Sums perceive, perceive_bias, fc0, fc0_bias, fc1;

    explicit Slot(const Rule::Packed& rule)
        : fc0(*rule.kernels, rule.hidden, 3 * rule.channels), fc0_bias(*rule.kernels, 1, rule.hidden),
          fc1(*rule.kernels, rule.channels, rule.hidden) {
        const int taps = (2 * rule.radius + 1) * (2 * rule.radius + 1);
        if (rule.perception == Perception::conv) {
            perceive = Sums(*rule.kernels, 2 * rule.channels, taps * rule.channels);
            perceive_bias = Sums(*rule.kernels, 1, 2 * rule.channels);
        }
    }

    void add(const Slot& other) const {
        for (auto sums : {&Slot::perceive, &Slot::perceive_bias, &Slot::fc0, &Slot::fc0_bias, &Slot::fc1})
            (this->*sums).add(other.*sums);
    }
};

// The rule's products with inputs and outputs exchanged.
struct Transposed {
    Matrix fc1, fc0, perceive;

    explicit Transposed(const RuleWeights& w) {
        const Kernels& kernels = active_kernels();
        const int c = w.channels, taps = w.kernel_size * w.kernel_size;
        fc1 = Matrix(kernels, w.hidden, c, nullptr,
                     [&](int n, int k) { return w.fc1_weight[static_cast<size_t>(k) * w.hidden + n]; });
        fc0 = Matrix(kernels, 3 * c, w.hidden, nullptr,
                     [&](int n, int k) { return w.fc0_weight[static_cast<size_t>(k) * 3 * c + n]; });
        if (w.perception == Perception::conv)
            perceive = Matrix(kernels, taps * c, 2 * c, nullptr, [&](int n, int k) {
                const float* kernel = k < c ? w.p0_weight : w.p1_weight;
                const size_t out = k < c ? k : k - c, in = n % c, tap = n / c;
                return kernel[(out * c + in) * taps + tap];
            });
    }
};

// Rows of floats, one a cell of a block, and pointers to them for a product.
struct Rows {
    int stride;
    Buffer data;
    std::vector<const float*> pointers;

    Rows(int cells, int stride, int offset = 0)
        : stride(stride), data(static_cast<size_t>(cells) * stride), pointers(cells) {
        for (int i = 0; i < cells; ++i)
            pointers[i] = row(i) + offset;
    }
    float* row(int i) const { return data.data() + static_cast<size_t>(i) * stride; }
};

// What one thread needs.
class Backprop {
  public:
    Backprop(const Rule::Packed& rule, const Transposed& transposed, int height, int width)
        : rule_(rule), kernels_(*rule.kernels), transposed_(transposed), sweep_(rule, width),
          taps_((2 * rule.radius + 1) * (2 * rule.radius + 1)),
          old_(static_cast<size_t>(height) * width * rule.channels),
          change_(sweep_.block(), round_up(rule.channels, kernels_.width)),
          hidden_(sweep_.block(), transposed.fc1.panels().outputs),
          inputs_(sweep_.block(), round_up(3 * rule.channels, kernels_.width)),
          seen_(sweep_.block(), transposed.fc0.panels().outputs, rule.channels),
          patches_(conv() ? sweep_.block() : 0, round_up(taps_ * rule.channels, kernels_.width)),
          spread_(conv() ? sweep_.block() : 0, conv() ? transposed.perceive.panels().outputs : 0) {}

    // Takes the gradient of one image's state back by one step.
    void step(const Image& image, float* gradient, int step, const Slot& slot) {
        // The gradient that the cells' changes see must not hold what this step adds.
        std::copy_n(gradient, image.height * image.row_floats, old_.data());
        sweep_.start(image);
        for (int y = 0; y < image.height;) {
            y = sweep_.fill_band(y, step);
            for (int begin = 0; begin < sweep_.cells(); begin += sweep_.block())
                block(image, gradient, begin, std::min(begin + sweep_.block(), sweep_.cells()), slot);
        }
    }

  private:
    bool conv() const { return rule_.perception == Perception::conv; }
    int center() const { return taps_ / 2; }

    void block(const Image& image, float* gradient, int begin, int end, const Slot& slot) {
        const int channels = rule_.channels, cells = end - begin;
        const int tiles = sweep_.hide(begin, end);
        const int hidden_stride = rule_.fc0.panels().outputs;

        for (int i = 0; i < cells; ++i) {
            const size_t cell = sweep_.neighbours(center())[i] - image.state;
            std::fill_n(change_.row(i), rule_.input_channels, 0.0f);
            std::copy_n(old_.data() + cell + rule_.input_channels, channels - rule_.input_channels,
                        change_.row(i) + rule_.input_channels);
        }
        kernels_.outer(change_.data.data(), change_.stride, channels, sweep_.hidden(), hidden_stride,
                       rule_.hidden, cells, slot.fc1.data.data(), slot.fc1.stride);

        const Segment change{change_.pointers.data(), channels};
        kernels_.product(&change, 1, tiles, transposed_.fc1.panels(), false, hidden_.data.data());
        for (int i = 0; i < cells; ++i) {
            const float* h = sweep_.hidden() + static_cast<size_t>(i) * hidden_stride;
            float* gated = hidden_.row(i);
            for (int n = 0; n < rule_.hidden; ++n)
                gated[n] = h[n] > 0.0f ? gated[n] : 0.0f;
            kernels_.add(slot.fc0_bias.data.data(), gated, 0, rule_.hidden);
            std::copy_n(sweep_.neighbours(center())[i], channels, inputs_.row(i));
            std::copy_n(sweep_.perceived() + static_cast<size_t>(i) * sweep_.perceived_stride(), 2 * channels,
                        inputs_.row(i) + channels);
        }
        kernels_.outer(hidden_.data.data(), hidden_.stride, rule_.hidden, inputs_.data.data(), inputs_.stride,
                       3 * channels, cells, slot.fc0.data.data(), slot.fc0.stride);

        const Segment hidden{hidden_.pointers.data(), rule_.hidden};
        kernels_.product(&hidden, 1, tiles, transposed_.fc0.panels(), false, seen_.data.data());
        if (conv())
            perceive_conv(image, gradient, cells, tiles, slot);
        else
            perceive_sobel(image, gradient, cells);
        for (int i = 0; i < cells; ++i)
            kernels_.add(gradient + (sweep_.neighbours(center())[i] - image.state), seen_.row(i), 0,
                         channels);
    }

    void perceive_conv(const Image& image, float* gradient, int cells, int tiles, const Slot& slot) {
        const int channels = rule_.channels;
        for (int i = 0; i < cells; ++i) {
            for (int tap = 0; tap < taps_; ++tap)
                std::copy_n(sweep_.neighbours(tap)[i], channels, patches_.row(i) + tap * channels);
            kernels_.add(slot.perceive_bias.data.data(), seen_.row(i) + channels, 0, 2 * channels);
        }
        kernels_.outer(seen_.data.data() + channels, seen_.stride, 2 * channels, patches_.data.data(),
                       patches_.stride, taps_ * channels, cells, slot.perceive.data.data(),
                       slot.perceive.stride);
        const Segment seen{seen_.pointers.data(), 2 * channels};
        kernels_.product(&seen, 1, tiles, transposed_.perceive.panels(), false, spread_.data.data());
        for (int i = 0; i < cells; ++i)
            for (int tap = 0; tap < taps_; ++tap)
                if (const float* to = sweep_.neighbours(tap)[i]; to != sweep_.zeros())
                    kernels_.add(gradient + (to - image.state), spread_.row(i) + tap * channels, 0, channels);
    }

    void perceive_sobel(const Image& image, float* gradient, int cells) {
        static constexpr float kDown[9] = {-1, -2, -1, 0, 0, 0, 1, 2, 1};
        static constexpr float kRight[9] = {-1, 0, 1, -2, 0, 2, -1, 0, 1};
        const int channels = rule_.channels;
        for (int i = 0; i < cells; ++i) {
            const float* down = seen_.row(i) + channels;
            const float* right = down + channels;
            for (int tap = 0; tap < taps_; ++tap) {
                const float* cell = sweep_.neighbours(tap)[i];
                if (tap == center() || cell == sweep_.zeros())
                    continue;
                float* to = gradient + (cell - image.state);
                const float a = kDown[tap] * 0.125f, b = kRight[tap] * 0.125f;
                for (int c = 0; c < channels; ++c)
                    to[c] += a * down[c] + b * right[c];
            }
        }
    }

    const Rule::Packed& rule_;
    const Kernels& kernels_;
    const Transposed& transposed_;
    Sweep sweep_;
    const int taps_;
    Buffer old_;
    Rows change_, hidden_, inputs_; // gradients of the change and of the hidden layer; [state, perceived]
    Rows seen_;                     // gradient of [state, perceived]; pointers at perceived
    Rows patches_, spread_;         // neighbours, and the gradient that goes to them
};

void write(const RuleWeights& w, const Slot& sums, const WeightGradients& out) {
    const size_t c = w.channels, taps = static_cast<size_t>(w.kernel_size) * w.kernel_size;
    for (size_t n = 0; n < c; ++n)
        std::copy_n(sums.fc1.row(n), w.hidden, out.fc1_weight + n * w.hidden);
    for (int n = 0; n < w.hidden; ++n)
        std::copy_n(sums.fc0.row(n), 3 * c, out.fc0_weight + n * 3 * c);
    std::copy_n(sums.fc0_bias.row(0), w.hidden, out.fc0_bias);
    if (w.perception != Perception::conv)
        return;
    for (size_t n = 0; n < 2 * c; ++n) {
        float* kernel = (n < c ? out.p0_weight : out.p1_weight) + n % c * c * taps;
        for (size_t in = 0; in < c; ++in)
            for (size_t tap = 0; tap < taps; ++tap)
                kernel[in * taps + tap] = sums.perceive.row(n)[tap * c + in];
    }
    std::copy_n(sums.perceive_bias.row(0), c, out.p0_bias);
    std::copy_n(sums.perceive_bias.row(0) + c, c, out.p1_bias);
}

} // namespace

void rollout(const RuleWeights& weights, float* states, size_t count, int height, int width, int steps,
             const Fire& fire, int threads) {
    const Rule rule(weights);
    const Rule::Packed& packed = rule.packed();
    check_size(packed, height, width);
    const size_t image_floats = static_cast<size_t>(height) * width * packed.channels;
    Team team(static_cast<int>(std::min<size_t>(std::max(threads, 1), std::max<size_t>(count, 1))));
    std::vector<Sweep> sweeps;
    sweeps.reserve(team.size());
    for (int i = 0; i < team.size(); ++i)
        sweeps.emplace_back(packed, width);
    std::atomic<size_t> next{0};
    team.run([&](int thread) {
        for (size_t member; (member = next.fetch_add(1)) < count;)
            for (int step = 0; step < steps; ++step) {
                float* before = states + step * count * image_floats;
                float* after = before + count * image_floats;
                std::copy_n(before + member * image_floats, image_floats, after + member * image_floats);
                const Image image = image_of(packed, after, count, height, width, fire, member);
                sweeps[thread].step(image, 0, height, step, {});
            }
    });
}

void backward(const RuleWeights& weights, const float* states, float* gradient, size_t count, int height,
              int width, int steps, const Fire& fire, int threads, const WeightGradients& out) {
    const Rule rule(weights);
    const Rule::Packed& packed = rule.packed();
    const Transposed transposed(weights);
    check_size(packed, height, width);
    const size_t image_floats = static_cast<size_t>(height) * width * packed.channels;
    const size_t slot_count = std::max<size_t>(1, std::min(count, kSlots));
    std::vector<Slot> slots;
    for (size_t i = 0; i < slot_count; ++i)
        slots.emplace_back(packed);
    Team team(static_cast<int>(std::min<size_t>(std::max(threads, 1), slot_count)));
    std::vector<Backprop> workers;
    workers.reserve(team.size());
    for (int i = 0; i < team.size(); ++i)
        workers.emplace_back(packed, transposed, height, width);
    std::atomic<size_t> next{0};
    team.run([&](int thread) {
        for (size_t slot; (slot = next.fetch_add(1)) < slot_count;)
            for (size_t member = slot; member < count; member += slot_count)
                for (int step = steps; step-- > 0;) {
                    // only read: nothing here changes a state
                    float* state = const_cast<float*>(states) + step * count * image_floats;
                    const Image image = image_of(packed, state, count, height, width, fire, member);
                    workers[thread].step(image, gradient + member * image_floats, step, slots[slot]);
                }
    });
    for (size_t i = 1; i < slot_count; ++i)
        slots[0].add(slots[i]);
    write(weights, slots[0], out);
}

} // namespace nca
