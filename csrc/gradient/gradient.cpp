#include "gradient.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <vector>

#include "../parallel.hpp"
#include "../sweep.hpp"
#include "flush.hpp"

namespace nca {

namespace {

// Weight gradients are summed over the members n, n + kSlots, ... of a slot, then over slots: in an order
// that does not depend on threads. More threads than slots find no work.
constexpr size_t kSlots = 16;

// Forward again, back to inputs, and to weights: so many times the multiply-adds of a cell.
constexpr int kProducts = 3;

// A matrix of sums with rows padded to whole registers.
struct Sums {
    int rows = 0, columns = 0, stride = 0;
    Buffer data;

    Sums() = default;
    Sums(const Kernels& kernels, int rows, int columns)
        : rows(rows), columns(columns), stride(round_up(columns, kernels.width)),
          data(static_cast<size_t>(rows) * stride) {}

    float* row(int m) const { return data.data() + static_cast<size_t>(m) * stride; }
    void add(const Sums& other) const {
        for (size_t i = 0; i < static_cast<size_t>(rows) * stride; ++i)
            data.data()[i] += other.data.data()[i];
    }
};

// What a slot sums, laid out with as many whole registers in a row as can be. Perception's inputs are those
// of a patch, row by row, its outputs [p0, p1]; fc0's inputs are [state, perceived].
struct Slot {
    Sums perceive, perceive_bias, fc0, fc0_bias, fc1; // a row an input, but of fc1 an output

    explicit Slot(const Rule::Packed& rule)
        : fc0(*rule.kernels, 3 * rule.channels, rule.hidden), fc0_bias(*rule.kernels, 1, rule.hidden),
          fc1(*rule.kernels, rule.channels, rule.hidden) {
        const int side = 2 * rule.radius + 1;
        if (rule.perception == Perception::conv) {
            perceive = Sums(*rule.kernels, side * side * rule.channels, 2 * rule.channels);
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

    Transposed(const RuleWeights& w, const Kernels& kernels) {
        const int c = w.channels, taps = w.kernel_size * w.kernel_size;
        fc1 = Matrix(kernels, w.hidden, c, nullptr,
                     [&](int n, int k) { return w.fc1_weight[static_cast<size_t>(k) * w.hidden + n]; });
        // [perceived, state]: what is read most often stands where registers do
        fc0 = Matrix(kernels, 3 * c, w.hidden, nullptr, [&](int n, int k) {
            return w.fc0_weight[static_cast<size_t>(k) * 3 * c + (n + c) % (3 * c)];
        });
        if (w.perception == Perception::conv)
            perceive = Matrix(kernels, taps * c, 2 * c, nullptr, [&](int n, int k) {
                const float* kernel = k < c ? w.p0_weight : w.p1_weight;
                const size_t out = k < c ? k : k - c, in = n % c, tap = n / c;
                return kernel[(out * c + in) * taps + tap];
            });
    }
};

// Rows of floats, one a cell of a block, and pointers to them.
struct Rows {
    int stride;
    Buffer data;
    std::vector<const float*> pointers;

    Rows(int cells, int stride) : stride(stride), data(static_cast<size_t>(cells) * stride), pointers(cells) {
        for (int i = 0; i < cells; ++i)
            pointers[i] = row(i);
    }
    float* row(int i) const { return data.data() + static_cast<size_t>(i) * stride; }
    Segment segment(int length, int first = 0) const { return {pointers.data() + first, length, stride}; }
};

// The gradient of one image's state, with a margin for what cells at the border give to neighbours outside.
class Field {
  public:
    Field(const Rule::Packed& rule, int height, int width)
        : padding_(rule.padding), radius_(rule.radius), channels_(rule.channels), height_(height),
          width_(width), stride_(static_cast<size_t>(width + 2 * rule.radius) * rule.channels),
          data_(stride_ * (height + 2 * static_cast<size_t>(rule.radius))),
          sums_(static_cast<size_t>(width) * rule.channels) {}

    float* at(int y, int x) {
        return data_.data() + (y + radius_) * stride_ + static_cast<std::ptrdiff_t>(x + radius_) * channels_;
    }

    void read(const float* image) {
        for (int y = 0; y < height_; ++y, image += static_cast<size_t>(width_) * channels_)
            std::copy_n(image, static_cast<size_t>(width_) * channels_, at(y, 0));
    }
    // What cells get that were repeated scale x scale times, and of which an image then replaced channel 0 or
    // did not: sums over columns of sums over rows.
    void write(float* cells, int scale, bool replaced) {
        const size_t length = sums_.size();
        const auto add = [](const float* from, size_t count, float* to) {
            for (size_t i = 0; i < count; ++i)
                to[i] += from[i];
        };
        for (int y = 0; y < height_; y += scale) {
            std::copy_n(at(y, 0), length, sums_.data());
            for (int dy = 1; dy < scale; ++dy)
                add(at(y + dy, 0), length, sums_.data());
            const float* column = sums_.data();
            for (int x = 0; x < width_; x += scale, cells += channels_) {
                std::copy_n(column, channels_, cells);
                column += channels_;
                for (int dx = 1; dx < scale; ++dx, column += channels_)
                    add(column, channels_, cells);
                if (replaced)
                    cells[0] = 0.0f;
            }
        }
    }

    // Gives what the margin holds to the cells that stand for it, and empties it.
    void fold() {
        for (int k = 1; k <= radius_; ++k)
            for (const int y : {-k, height_ - 1 + k}) {
                const int row = inside(padding_, y, height_);
                move(at(y, -radius_), stride_, row < 0 ? nullptr : at(row, -radius_));
            }
        for (int y = 0; y < height_; ++y)
            for (int k = 1; k <= radius_; ++k)
                for (const int x : {-k, width_ - 1 + k}) {
                    const int column = inside(padding_, x, width_);
                    move(at(y, x), channels_, column < 0 ? nullptr : at(y, column));
                }
    }

  private:
    static void move(float* from, size_t count, float* to) {
        for (size_t i = 0; i < count; ++i) {
            if (to)
                to[i] += from[i];
            from[i] = 0.0f;
        }
    }

    const Padding padding_;
    const int radius_, channels_, height_, width_;
    const size_t stride_;
    Buffer data_;
    std::vector<float> sums_; // of a row of cells
};

// What one thread needs.
class Backprop {
  public:
    Backprop(const Rule::Packed& rule, const Transposed& transposed, int height, int width,
             const Lookout& lookout)
        : rule_(rule), kernels_(*rule.kernels), transposed_(transposed),
          sweep_(rule, width, lookout, 2 * kBlockCells), side_(2 * rule.radius + 1), width_(width),
          state_(static_cast<size_t>(height) * width * rule.channels), field_(rule, height, width),
          kept_(static_cast<size_t>(rule.radius) * width * rule.channels), before_(sweep_.most_cells()),
          changes_(sweep_.most_cells() + kernels_.cells, round_up(rule.channels, kernels_.width)),
          hidden_(sweep_.block(), transposed.fc1.panels().outputs),
          seen_(sweep_.block(), transposed.fc0.panels().outputs),
          spread_(sweep_.block(), conv() ? transposed.perceive.panels().outputs : 9 * rule.channels), one_(1),
          ones_(sweep_.block(), one_.data()), cells_(sweep_.block()), patches_(cells_.size() * side_) {
        one_.data()[0] = 1.0f;
        runs_.reserve(cells_.size()); // each has a cell at least
    }

    // Takes the gradient of one image's state, a member of the batch, back from after the last step to before
    // the first, to the cells that this was made of; `image` is after the last. Returns whether to stop.
    bool run(const float* gradient, Image image, int steps, const Record& record, size_t member,
             const Slot& slot, float* of_start, int scale, bool replaced) {
        std::copy_n(image.state, image.row_floats * image.height, state_.data());
        image.state = state_.data();
        field_.read(gradient);
        for (int step = steps; step-- > 0;) {
            undo(image, step, record.states(step, member));
            sweep_.recall(record.perceived(step, member));
            if (this->step(image, step, slot))
                return true;
        }
        field_.write(of_start, scale, replaced);
        return false;
    }

  private:
    bool conv() const { return rule_.perception == Perception::conv; }

    // Gives the cells that fired in a step the state that they had before.
    void undo(const Image& image, int step, const float* states) {
        sweep_.start(image);
        for (int y = 0; y < image.height;) {
            y = sweep_.fill_band(y, step);
            kernels_.scatter(sweep_.firing(), sweep_.cells(), rule_.channels, states, rule_.channels);
            states += static_cast<size_t>(sweep_.cells()) * rule_.channels;
        }
    }

    bool step(const Image& image, int step, const Slot& slot) {
        sweep_.start(image);
        kept_end_ = 0;
        for (int y = 0, next; y < image.height; y = next) {
            next = sweep_.fill_band(y, step);
            take_changes();
            keep_rows(next, std::min(next + rule_.radius, image.height));
            for (int begin = 0; begin < sweep_.cells(); begin += sweep_.block()) {
                const int end = std::min(begin + sweep_.block(), sweep_.cells());
                block(begin, end, slot);
                if (sweep_.stop_after_cells(kProducts * (end - begin)))
                    return true;
            }
            if (sweep_.stop_after_masks(2 * static_cast<size_t>(next - y) * image.width))
                return true;
        }
        field_.fold();
        return false;
    }

    // The gradients of the changes of the band's cells, which must not hold what this step adds.
    void take_changes() {
        sweep_.for_each_cell(0, sweep_.cells(), [&](int cell, int y, int x) {
            before_[cell] = y < kept_end_ ? kept_row(y) + static_cast<std::ptrdiff_t>(x) * rule_.channels
                                          : field_.at(y, x);
        });
        kernels_.gather(before_.data(), sweep_.cells(), rule_.channels, changes_.row(0), changes_.stride);
        for (int i = 0; i < sweep_.cells(); ++i)
            std::fill_n(changes_.row(i), rule_.input_channels, 0.0f); // the image never changes
    }

    // Keeps the rows behind a band, to which it will add and which later bands must see as they were.
    void keep_rows(int first, int last) {
        for (int y = std::max(first, kept_end_); y < last; ++y)
            std::copy_n(field_.at(y, 0), static_cast<size_t>(width_) * rule_.channels, kept_row(y));
        kept_end_ = std::max(kept_end_, last);
    }
    float* kept_row(int y) {
        return kept_.data() + static_cast<size_t>(y % rule_.radius) * width_ * rule_.channels;
    }

    void block(int begin, int end, const Slot& slot) {
        const int channels = rule_.channels, cells = end - begin;
        const int tiles = sweep_.hide(begin, end);
        point_at_cells(begin, end);

        outer(changes_.pointers.data() + begin, channels, sweep_.hidden_rows(), rule_.hidden, cells,
              slot.fc1);
        product(changes_.segment(channels, begin), tiles, transposed_.fc1, {After::gate, sweep_.hidden()},
                hidden_);

        outer(sweep_.states(), channels, hidden_.pointers.data(), rule_.hidden, cells, slot.fc0);
        outer(sweep_.perceived(), 2 * channels, hidden_.pointers.data(), rule_.hidden, cells, slot.fc0,
              channels);
        sum(hidden_.pointers.data(), rule_.hidden, cells, slot.fc0_bias);
        product(hidden_.segment(rule_.hidden), tiles, transposed_.fc0, {}, seen_);
        if (conv())
            perceive_conv(cells, tiles, slot);
        else
            kernels_.spread_sobel(seen_.pointers.data(), cells, channels, spread_.data.data(),
                                  spread_.stride);
        for (int first = begin; first < end; first += kBlockCells)
            add(first, std::min(first + kBlockCells, end), begin);
    }

    // Adds what cells first .. last - 1 of the block, which begins at cell `begin`, give to themselves and to
    // their neighbours. A cell gets its own first, then what comes from below, from its row and from above:
    // all that a row gives goes to rows of its own, and the last row goes first.
    void add(int first, int last, int begin) {
        const int channels = rule_.channels;
        const auto add = [&](float* const* to, int rows, const float* from, int stride, int length,
                             int cells) { kernels_.add(to, rows, from, stride, 0, length, cells); };
        add(&cells_[first - begin], 1, seen_.row(first - begin) + 2 * channels, seen_.stride, channels,
            last - first);
        for (auto run = runs_.rbegin(); run != runs_.rend(); ++run) {
            const int from = std::max(first, run->first), to = std::min(last, run->last);
            if (from < to)
                add(&patches_[(from - begin) * side_], side_, spread_.row(from - begin), spread_.stride,
                    side_ * channels, to - from);
        }
    }

    // Where the gradient of each cell and of its neighbours is.
    void point_at_cells(int begin, int end) {
        runs_.clear();
        sweep_.for_each_row(begin, end, [&](int first, int last, int) { runs_.push_back({first, last}); });
        float **cell = cells_.data(), **patch = patches_.data();
        sweep_.for_each_cell(begin, end, [&](int, int y, int x) {
            *cell++ = field_.at(y, x);
            for (int dy = 0; dy < side_; ++dy)
                *patch++ = field_.at(y + dy - rule_.radius, x - rule_.radius);
        });
    }

    void perceive_conv(int cells, int tiles, const Slot& slot) {
        const int channels = rule_.channels;
        sum(seen_.pointers.data(), 2 * channels, cells, slot.perceive_bias);
        for (int dy = 0; dy < side_; ++dy) {
            const Segment& patch = sweep_.patches()[dy];
            kernels_.outer(patch.rows, patch.length, seen_.pointers.data(), 2 * channels, cells,
                           slot.perceive.row(dy * patch.length), slot.perceive.stride);
        }
        product(seen_.segment(2 * channels), tiles, transposed_.perceive, {}, spread_);
    }

    void product(const Segment& in, int tiles, const Matrix& weights, const After& after,
                 const Rows& out) const {
        kernels_.product(&in, 1, tiles, weights.panels(), after, out.data.data(), out.stride);
    }
    void outer(const float* const* a, int rows, const float* const* b, int columns, int cells,
               const Sums& sums, int first = 0) const {
        kernels_.outer(a, rows, b, columns, cells, sums.row(first), sums.stride);
    }
    void sum(const float* const* rows, int columns, int cells, const Sums& sums) const {
        outer(ones_.data(), 1, rows, columns, cells, sums);
    }

    const Rule::Packed& rule_;
    const Kernels& kernels_;
    const Transposed& transposed_;
    Sweep sweep_;            // two blocks at once: half as many loads and stores of sums of outer products
    const int side_, width_; // of a patch, of the image
    Buffer state_;           // of the image, step by step as it was
    Field field_;
    Buffer kept_; // rows up to kept_end_ of the field before the step, as far as later bands need them
    int kept_end_ = 0;
    std::vector<const float*> before_; // the band's cells in the field before the step
    Rows changes_, hidden_;            // gradients of the band's changes, of the block's hidden layer
    Rows seen_;                        // gradient of [perceived, state]
    Rows spread_;                      // what it gives to the neighbours
    Buffer one_;
    std::vector<const float*> ones_;
    // Where the block's cells and the rows of their neighbours are in the field, and the cells that are in
    // one row.
    std::vector<float*> cells_, patches_;
    struct Run {
        int first, last;
    };
    std::vector<Run> runs_;
};

// Marks what the cells of a mask look at, row by row and shift by shift. Reflection shows no cell that is
// farther than the kernel reaches.
void need_around(uint8_t* needed, const uint8_t* mask, int radius, int height, int width) {
    const auto row_of = [width](auto* image, int y) { return image + static_cast<size_t>(y) * width; };
    const int reach = std::min(radius, width - 1);
    for (int y = 0; y < height; ++y)
        for (int row = std::max(y - radius, 0); row <= std::min(y + radius, height - 1); ++row)
            for (int dx = -reach; dx <= reach; ++dx) {
                const uint8_t* from = row_of(mask, y) + std::max(-dx, 0);
                uint8_t* to = row_of(needed, row) + std::max(dx, 0);
                for (int x = 0; x < width - std::abs(dx); ++x)
                    to[x] |= from[x];
            }
}

// One member's first state.
void enter(const Start& start, float* state, size_t member, int channels, int height, int width) {
    const int scale = start.scale, columns = width / scale;
    const size_t length = static_cast<size_t>(width) * channels;
    const float* cell = start.state + member * (height / scale) * columns * channels;
    const float* image = start.image ? start.image + member * height * width : nullptr;
    for (int y = 0; y < height; ++y, state += length) {
        if (y % scale > 0)
            std::copy_n(state - length, length, state);
        else
            for (float* to = state; to < state + length; cell += channels)
                for (int dx = 0; dx < scale; ++dx, to += channels)
                    std::copy_n(cell, channels, to);
        for (int x = 0; image && x < width; ++x)
            state[static_cast<size_t>(x) * channels] = *image++;
    }
}

void write(const RuleWeights& w, const Slot& sums, const WeightGradients& out) {
    const size_t c = w.channels, taps = static_cast<size_t>(w.kernel_size) * w.kernel_size;
    for (size_t n = 0; n < c; ++n)
        std::copy_n(sums.fc1.row(n), w.hidden, out.fc1_weight + n * w.hidden);
    for (int n = 0; n < w.hidden; ++n)
        for (size_t k = 0; k < 3 * c; ++k)
            out.fc0_weight[n * 3 * c + k] = sums.fc0.row(k)[n];
    std::copy_n(sums.fc0_bias.row(0), w.hidden, out.fc0_bias);
    if (w.perception != Perception::conv)
        return;
    for (size_t n = 0; n < 2 * c; ++n) {
        float* kernel = (n < c ? out.p0_weight : out.p1_weight) + n % c * c * taps;
        for (size_t in = 0; in < c; ++in)
            for (size_t tap = 0; tap < taps; ++tap)
                kernel[in * taps + tap] = sums.perceive.row(tap * c + in)[n];
    }
    std::copy_n(sums.perceive_bias.row(0), c, out.p0_bias);
    std::copy_n(sums.perceive_bias.row(0) + c, c, out.p1_bias);
}

} // namespace

bool reaching_masks(uint8_t* masks, const uint8_t* wanted, const RuleWeights& weights, size_t count,
                    int height, int width, int steps, const Fire& fire, const Interrupt& interrupt) {
    const size_t cells = static_cast<size_t>(height) * width;
    const auto not_zero = [](uint8_t value) -> uint8_t { return value != 0; };
    if (fire.masks)
        std::transform(fire.masks, fire.masks + steps * count * cells, masks, not_zero);
    else if (!fire_masks(masks, count, height, width, steps, weights.fire_rate, fire, interrupt))
        return false;
    Watch watch(interrupt);
    Lookout lookout(watch, true);
    const int radius = weights.kernel_size / 2;
    std::vector<uint8_t> needed(cells);
    for (size_t member = 0; member < count; ++member) {
        std::transform(wanted + member * cells, wanted + (member + 1) * cells, needed.begin(), not_zero);
        for (int step = steps; step-- > 0;) {
            if (lookout.stop(cells * weights.kernel_size))
                return false;
            uint8_t* mask = masks + (step * count + member) * cells;
            for (size_t i = 0; i < cells; ++i)
                mask[i] &= needed[i];
            need_around(needed.data(), mask, radius, height, width);
        }
    }
    return true;
}

bool rollout(const RuleWeights& weights, const Start& start, float* state, Record& record, size_t count,
             int height, int width, int steps, const Fire& fire, int threads, const Interrupt& interrupt) {
    const Rule rule(weights);
    const Rule::Packed& packed = rule.packed();
    check_size(packed, height, width);
    Watch watch(interrupt);
    Team team(static_cast<int>(std::min<size_t>(std::max(threads, 1), std::max<size_t>(count, 1))));
    std::vector<Sweep> sweeps;
    sweeps.reserve(team.size());
    for (int i = 0; i < team.size(); ++i)
        sweeps.emplace_back(packed, width, Lookout(watch, i == 0));
    const auto for_each_member = [&](const auto& visit) {
        std::atomic<size_t> next{0};
        team.run(watch, [&](int thread) {
            for (size_t member; (member = next.fetch_add(1)) < count && !watch.stopped();)
                visit(sweeps[thread], image_of(packed, state, count, height, width, fire, member), member);
        });
    };
    for_each_member([&](Sweep& sweep, const Image& image, size_t member) {
        for (int step = 0; step < steps; ++step)
            record.expect(step, member, sweep.count(image, step));
        enter(start, image.state, member, packed.channels, height, width);
    });
    if (watch.stopped()) // not all has been counted
        return false;
    record.make_room();
    for_each_member([&](Sweep& sweep, const Image& image, size_t member) {
        for (int step = 0; step < steps; ++step) {
            sweep.record(record.states(step, member), record.perceived(step, member));
            if (sweep.step(image, 0, height, step, {}))
                return;
        }
    });
    return !watch.stopped();
}

bool backward(const RuleWeights& weights, int scale, bool has_image, const float* state, const Record& record,
              const float* gradient, size_t count, int height, int width, int steps, const Fire& fire,
              int threads, float* of_start, const WeightGradients& of_weights, const Interrupt& interrupt) {
    const Rule rule(weights);
    const Rule::Packed& packed = rule.packed();
    const Transposed transposed(weights, *packed.kernels);
    check_size(packed, height, width);
    Watch watch(interrupt);
    const size_t image_floats = static_cast<size_t>(height) * width * packed.channels;
    const size_t start_floats = image_floats / scale / scale;
    const size_t slot_count = std::max<size_t>(1, std::min(count, kSlots));
    std::vector<Slot> slots;
    for (size_t i = 0; i < slot_count; ++i)
        slots.emplace_back(packed);
    Team team(static_cast<int>(std::min<size_t>(std::max(threads, 1), slot_count)));
    std::vector<Backprop> workers;
    workers.reserve(team.size());
    for (int i = 0; i < team.size(); ++i)
        workers.emplace_back(packed, transposed, height, width, Lookout(watch, i == 0));
    std::atomic<size_t> next{0};
    team.run(watch, [&](int thread) {
        const FlushSubnormals flush; // far from the loss gradients shrink from step to step, past 1e-38
        for (size_t slot; (slot = next.fetch_add(1)) < slot_count;)
            for (size_t member = slot; member < count; member += slot_count) {
                // only read: a worker changes a copy
                const Image last =
                    image_of(packed, const_cast<float*>(state), count, height, width, fire, member);
                if (workers[thread].run(gradient + member * image_floats, last, steps, record, member,
                                        slots[slot], of_start + member * start_floats, scale, has_image))
                    return;
            }
    });
    if (watch.stopped())
        return false;
    for (size_t i = 1; i < slot_count; ++i)
        slots[0].add(slots[i]);
    write(weights, slots[0], of_weights);
    return true;
}

} // namespace nca
